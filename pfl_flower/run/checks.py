"""What must hold of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pfl_flower.run.config import RunConfig
from pfl_flower.run.metrics import last_metrics


@dataclass(frozen=True)
class Check:
    """One claim about a run and whether it held."""

    name: str
    value: float | str | bool
    expected: str
    passed: bool


def sanity_checks(config: RunConfig, rows: list[dict[str, float]]) -> list[Check]:
    """Return what must hold of any run: all rounds done, rho finite, solves within tolerance."""
    final = last_metrics(rows)
    checks = [
        Check(
            "rounds", rows[-1]["round"], f"== {config.rounds}", rows[-1]["round"] == config.rounds
        ),
        Check("finite", final["norm_rho"], "finite", math.isfinite(final["norm_rho"])),
    ]
    if config.local_solver == "exact":
        missed = final["unconverged_total"]
        checks.append(Check("unconverged_total", missed, "== 0", missed == 0))
    return checks
