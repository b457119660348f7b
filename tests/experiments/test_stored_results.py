"""The stored results' verdicts follow from their numbers, by the claims as they stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.studies.catalogue import STUDIES
from experiments.studies.judging import finals_of, judgement
from experiments.studies.study import find_study
from pfl_flower.run.results import write_json

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
STORED = sorted(path.parent.name for path in RESULTS.glob("*/summary.json"))


@pytest.mark.parametrize("name", [name for name in STORED if name in STUDIES])
def test_stored_verdicts_are_what_the_claims_say_of_stored_metrics(
    name: str, tmp_path: Path
) -> None:
    """After a change of claims: ``reproduce --judge --output experiments/results``."""
    summary = json.loads((RESULTS / name / "summary.json").read_text())
    judged = judgement(find_study(name), finals_of(summary), summary["config"], stored=True)
    write_json(tmp_path / "again.json", judged)
    again = json.loads((tmp_path / "again.json").read_text())
    for key in (
        "checks",
        "unjudged",
        "passed",
        "success",
        "control",
        "claims",
        "paper",
        "standing",
    ):
        assert summary[key] == again[key], key


def test_no_two_claims_of_a_study_have_the_same_name() -> None:
    for name in STUDIES:
        study = find_study(name)
        titles = [claim.title for claim in (*study.success, *study.always)]
        assert len(set(titles)) == len(titles)
