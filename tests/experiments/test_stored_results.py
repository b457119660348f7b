"""The stored results' verdicts follow from their numbers, by the claims as they stand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from experiments.studies.catalogue import STUDIES
from experiments.studies.study import find_study

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
STORED = sorted(path.parent.name for path in RESULTS.glob("*/summary.json"))


def finals(summary: dict[str, Any]) -> list[dict[str, float]]:
    """Return what each seed ended with; a metric that only some had is of the first ones."""
    found: list[dict[str, float]] = [{} for _ in summary["seeds"]]
    for name, metric in summary["metrics"].items():
        for final, value in zip(found, metric["values"], strict=False):
            final[name] = value
    return found


@pytest.mark.parametrize("name", [name for name in STORED if name in STUDIES])
def test_stored_checks_are_what_the_claims_say_of_stored_metrics(name: str) -> None:
    summary = json.loads((RESULTS / name / "summary.json").read_text())
    stored = {check["name"]: check for check in summary["checks"]}
    study, judged = find_study(name), 0
    for claim in (*study.success, *study.always):
        check = claim.check(finals(summary))
        if claim.some and math.isnan(float(check.value)):
            continue  # of the digits, whose metrics that summary did not keep
        assert (check.value, check.passed) == (stored[check.name]["value"], True), check
        judged += 1
    assert judged >= len(study.success) / 2
    assert summary["passed"] == all(check["passed"] for check in stored.values())


def test_no_two_claims_of_a_study_have_the_same_name() -> None:
    for name in STUDIES:
        study = find_study(name)
        titles = [claim.title for claim in (*study.success, *study.always)]
        assert len(set(titles)) == len(titles)
