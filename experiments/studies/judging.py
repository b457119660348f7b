"""What is said of a study's numbers: its checks, and how it stands to the paper.

Both follow from the metrics alone, so that what was stored can be judged again by the claims as
they stand now (``reproduce --judge``), without measuring again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.studies.standing import overall
from experiments.studies.study import Study
from pfl_flower.run.checks import Check, Metrics
from pfl_flower.run.preset_claims import FREE, NO_CLAIM
from pfl_flower.run.results import write_json
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.versions import commit


def changed(study: Study, asked: Mapping[str, Any]) -> bool:
    """Return whether what was asked is no longer the study, but an experiment of one's own."""
    settings = {*(asked.get("settings") or {}), *(asked.get("study") or {})}
    return asked.get("rounds") is not None or bool(settings - FREE - study.brought)


def judgement(
    study: Study, finals: Sequence[Metrics], asked: Mapping[str, Any], *, stored: bool = False
) -> dict[str, Any]:
    """Return what a summary says of a study beside its numbers.

    Claims belong to the study as it stands: of other settings nothing is claimed, and nothing is
    compared with the paper. In the control every claim of success must fail, whatever the settings,
    and there is nothing to compare.

    Parameters
    ----------
    study : Study
        Whose claims they are.
    finals : sequence of mapping
        Each seed's metrics.
    asked : mapping
        The options that it was run with.
    stored : bool
        Whether the numbers are of other code: a check on what that did not measure is then named
        as not judged, and neither passes nor fails.
    """
    control, own = bool(asked.get("control")), changed(study, asked)
    checks = [] if own and not control else study.checks_of(finals)
    unjudged = [check.name for check in checks if stored and _absent(check, finals)]
    checks = [check for check in checks if check.name not in unjudged]
    paper = [] if own or control else study.compare(finals)
    missed = [check for check in checks if not control or check.name in study.must_fail]
    return {
        "checks": [asdict(check) for check in checks],
        "unjudged": unjudged,
        "passed": all(check.passed != control for check in missed),
        "success": study.must_fail,
        "control": control,
        "claims": NO_CLAIM if own else f"those of the study {study.name}",
        "paper": [asdict(one) for one in paper],
        "standing": overall(paper) if paper else "",
        "judged": commit(),
    }


def _absent(check: Check, finals: Sequence[Metrics]) -> bool:
    """Return whether a check has no value because what it is about was not measured.

    It has none either if what was measured is not a number: that fails.
    """
    none = isinstance(check.value, float) and math.isnan(check.value)
    return none and not any(math.isnan(value) for final in finals for value in final.values())


def finals_of(summary: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return what each seed ended with; a metric that only some have is of the first ones.

    Claims do not ask whose a value is, so that nothing depends on that.
    """
    found: list[dict[str, float]] = [{} for _ in summary["seeds"]]
    for name, metric in summary["metrics"].items():
        for final, value in zip(found, metric["values"], strict=False):
            final[name] = float(value)
    return found


def judge_again(study: Study, output: Path) -> dict[str, Any]:
    """Judge what a folder holds of a study by the claims as they stand; keep and return it.

    Raises
    ------
    ConfigError
        If there is nothing to judge.
    """
    path = output / study.name / "summary.json"
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        again = judgement(study, finals_of(summary), summary["config"], stored=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--judge: expected results in {path} ({error})") from None
    summary.update(again)
    write_json(path, summary)
    return summary
