"""What a run leaves behind when it ends: ``summary.json`` and the files beside it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pfl_flower.run.checks import Check
from pfl_flower.support.files import VERSION, replace_file, replacing
from pfl_flower.support.hardware import hardware
from pfl_flower.support.versions import commit, versions

LIMIT_FILE = "limit.npz"
"""The last rho and the sum of the strategic users' last accepted reports, in a run's folder."""


def behaviour(step_norms: Sequence[float]) -> str:
    """Return how the steps ``||rho_{t+1} - rho_t||`` of a run evolve.

    The first quarter, in which rho leaves its start, does not count. ``diverging`` when the last
    quarter's largest step is above the second's or not finite, ``settling`` when it is at most half
    of it, ``moving`` in between.

    >>> behaviour([9.0, 1.0, 0.5, 0.25]), behaviour([9.0, 1.0, 2.0, 4.0])
    ('settling', 'diverging')
    """
    if not all(math.isfinite(norm) for norm in step_norms):
        return "diverging"
    quarter = max(1, len(step_norms) // 4)
    before = max(step_norms[quarter : 2 * quarter], default=0.0)
    last = max(step_norms[-quarter:], default=0.0)
    if last > before > 0:
        return "diverging"
    return "settling" if last <= before / 2 else "moving"


def summarise(
    *,
    experiment: str,
    config: Mapping[str, Any],
    seeds: Sequence[int],
    finals: Sequence[Mapping[str, float]],
    checks: Sequence[Check],
    device: str,
    seconds: float,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of ``summary.json``.

    Parameters
    ----------
    experiment, config, seeds
        What was run.
    finals
        For each seed its metrics at the end; one that some seeds lack is of the others.
    checks
        What had to hold; the run passed if all did.
    device, seconds
        Where, and how long.
    extra
        Further entries.
    """
    names = dict.fromkeys(name for final in finals for name in final)
    metrics = {
        name: {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else 0.0,
            "values": values,
        }
        for name in names
        for values in [[final[name] for final in finals if name in final]]
    }
    return {
        "experiment": experiment,
        "config": dict(config),
        "seeds": list(seeds),
        "metrics": metrics,
        "checks": [asdict(check) for check in checks],
        "passed": all(check.passed for check in checks),
        **(extra or {}),
        "versions": versions(),
        "commit": commit(),
        "device": device,
        "hardware": hardware(device),
        "seconds": round(seconds, 3),
    }


def write_limit(path: Path, rho: Tensor, gradient: Tensor) -> None:
    """Keep where a gradient attack held rho and the gradient ``(d,)`` that did."""
    kept = rho.double().cpu().numpy(), gradient.double().cpu().numpy()
    with replacing(path) as file:
        np.savez(file, version=VERSION, rho=kept[0], gradient=kept[1])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON; numbers that it lacks are spelled as text."""
    replace_file(path, json.dumps(_jsonable(content), indent=2) + "\n")


def _jsonable(value: Any) -> Any:
    """Return the value with numbers that JSON lacks spelled as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    return value
