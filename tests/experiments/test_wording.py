"""Each study says what is claimed, and what was measured by its stored numbers alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import experiments
from experiments.studies.catalogue import STUDIES
from experiments.studies.study import find_study
from experiments.studies.wording import Measured, NotMeasuredError

RESULTS = Path(experiments.__file__).parent / "results"


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_its_claim_and_its_numbers(name: str) -> None:
    study = find_study(name)
    measured = Measured.of(json.loads((RESULTS / name / "summary.json").read_text()))
    said = study.words(measured)
    for text in (study.claim, said):
        assert 40 < len(text) < 420
        assert text.endswith(".") and ".." not in text and "nan" not in text
    other = Measured({key: [math.nan for _ in values] for key, values in measured.values.items()})
    # Were a number typed in, it would still stand there; what is left are the theory's symbols.
    assert study.words(other).count("nan") >= 2
    with pytest.raises(NotMeasuredError):
        study.words(Measured({}))


@pytest.mark.parametrize(
    ("what", "names", "expected"),
    [
        ("low", ("a*",), 1.0),
        ("high", ("a*",), 4.0),
        ("mean", ("a", "b"), 4.0),
        ("total", ("a*",), 10.0),
        ("low", ("none, a",), math.nan),
        ("high", ("none, a",), math.nan),
    ],
)
def test_statistics_over_seeds_and_metrics(
    what: str, names: tuple[str, ...], expected: float
) -> None:
    measured = Measured({"a": [3, 2], "a b": [1, 4], "b": [7], "none, a": [1, math.nan, 2]})
    assert getattr(measured, what)(*names) == pytest.approx(expected, nan_ok=True)


def test_a_metric_can_be_left_out_and_asked_for_by_its_seeds() -> None:
    measured = Measured({"a": [3, 2], "a b": [1, 4]})
    assert measured.high("a*", but="a *") == 3
    assert measured["a b"] == [1, 4]
    with pytest.raises(NotMeasuredError, match="no metric 'c'"):
        measured["c"]
    spelled = {"metrics": {"a": {"values": ["nan", 1]}}}
    assert math.isnan(Measured.of(spelled).high("a"))
