"""How ours stands to the paper's: three words by stated rules, beside passed or failed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import main
from experiments.running.options import Options
from experiments.studies.catalogue import STUDIES
from experiments.studies.judging import finals_of, judge_again, judgement
from experiments.studies.measuring import run_study
from experiments.studies.reproduce import reproduce
from experiments.studies.standing import Printed, Stated
from experiments.studies.study import find_study
from pfl_flower.run.checks import Claim, at_least, at_most
from pfl_flower.run.preset_claims import NO_CLAIM
from pfl_flower.support.errors import ConfigError
from tests.support import fake_studies
from tests.support.fake_studies import SMALL, quiet

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
ASKED: dict[str, Any] = {"rounds": None, "settings": {}, "control": False, "quick": False}
NAN = math.nan


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_studies.register(monkeypatch)


@pytest.mark.parametrize(
    ("value", "seeds", "standing", "size"),
    [
        # Half a unit of the last digit, and no more of one seed.
        (0.55, [0.5549], "reproduced", "+0.0049 (+0.9 %)"),
        (0.55, [0.5449], "differs", "-0.0051 (-0.9 %)"),
        # 2 * 0.01 * sqrt(1 + 1/2) = 0.0245 beside the 0.005, of seeds 0.0141 apart.
        (0.55, [0.51293, 0.52707], "differs", "-0.03 (-5.5 %)"),
        (0.55, [0.51393, 0.52807], "reproduced", "-0.029 (-5.3 %)"),
        (0.0, [0.0, 0.0, 0.0], "reproduced", "+0"),
        (0.55, [NAN, 0.55], "differs", "+nan (+nan %)"),
        (0.55, [math.inf], "differs", "+inf (+inf %)"),
        (0.55, [], "not measured", ""),
    ],
)
def test_a_number_is_reproduced_if_it_could_be_a_seed_of_ours(
    value: float, seeds: list[float], standing: str, size: str
) -> None:
    found = Printed("idle", "a", value, "Table 1").compare([{"a": one} for one in seeds])
    assert (found.standing, found.size) == (standing, size)


@pytest.mark.parametrize(
    ("seeds", "proved", "between"),
    [
        ([0.1, 0.2], "reproduced", "reproduced"),
        ([0.1, 0.3], "contradicted", "differs"),
        ([0.1, 0.5], "contradicted", "contradicted"),
        ([0.5, 0.1, 0.3], "contradicted", "contradicted"),
        ([0.1, NAN], "contradicted", "differs"),
        ([], "not measured", "not measured"),
    ],
)
def test_a_statement_is_judged_by_its_worst_seed(
    seeds: list[float], proved: str, between: str
) -> None:
    finals = [{"a": one} for one in seeds]
    said = Stated(what="a is small", where="Theorem 0", claim=Claim("a", at_most(0.2)), why="so")
    assert said.compare(finals).standing == proved
    assert replace(said, against=at_least(0.5)).compare(finals).standing == between
    assert said.compare([{"b": 1.0}]).standing == "not measured"


def test_what_is_worked_out_from_metrics_that_are_missing_is_not_measured() -> None:
    claim = Claim(lambda final: final["a"] - final["b"], at_most(0), "less")
    said = Stated(what="a is less", where="Figure 0", claim=claim, why="so")
    assert said.compare([{"a": 1.0}]).standing == "not measured"
    assert said.compare([{"a": 1.0}, {"a": 1.0, "b": 2.0}]).standing == "reproduced"


NEAR = Stated(
    what="the gap closes",
    where="Figure 9",
    claim=Claim("gap", at_most(1e-12)),
    against=at_least(1),
    why="so",
    value=0.0,
)


@pytest.mark.parametrize(
    ("limits", "standing"),
    [(at_most(1), "reproduced"), (at_most(1e-12), "differs"), (None, "contradicted")],
)
def test_no_exit_code_depends_on_it(
    limits: Any,
    standing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = (
        replace(NEAR, claim=Claim("gap", limits))
        if limits
        else replace(NEAR, claim=Claim("gap", at_most(-1)), against=None)
    )
    monkeypatch.setattr(fake_studies, "PLAIN", fake_studies.study("plain", paper=(said,)))
    assert main(["run", "plain", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"the paper's numbers and statements: {standing}" in out
    assert "the gap closes (Figure 9)" in " ".join(out.split())
    summary = json.loads((tmp_path / "plain" / "summary.json").read_text())
    assert (summary["passed"], summary["standing"]) == (True, standing)
    assert [one["standing"] for one in summary["paper"]] == [standing]
    (outcome,) = reproduce(["plain"], Options(output=tmp_path), quiet())
    assert (outcome.verdict, outcome.standing) == ("passed", standing)
    assert bool(outcome.apart) == (standing != "reproduced")
    assert main(["report", "plain", "--output", str(tmp_path)]) == 0
    assert f"| {standing} |" in (tmp_path / "report.md").read_text()
    assert standing in (tmp_path / "report.html").read_text()


def test_of_other_settings_a_study_claims_nothing_and_compares_nothing(tmp_path: Path) -> None:
    wrong = Claim("accuracy", at_least(2), "too much")
    runs = fake_studies.study("plain", has_runs=True, always=(wrong,), paper=(NEAR,))
    for asked in ({"settings": {"lam": 2.0}}, {"rounds": 3}):
        own = run_study(runs, Options(output=tmp_path, **asked), quiet())  # type: ignore[arg-type]
        assert own["passed"], own
        assert (own["claims"], own["checks"], own["paper"], own["standing"]) == (
            NO_CLAIM,
            [],
            [],
            "",
        )
    # Where data lie and how many nodes carry it changes nothing of what the study is.
    for asked in ({"settings": {"data-dir": "/data"}}, {"nodes": 3}):
        same = run_study(runs, Options(output=tmp_path, **asked), quiet())  # type: ignore[arg-type]
        assert (same["passed"], same["standing"]) == (False, "differs")


def test_in_the_control_nothing_is_compared_and_settings_do_not_excuse_a_claim_that_holds() -> None:
    attack = fake_studies.study("plain", has_runs=True, success=(SMALL,), paper=(NEAR,))
    for asked in ({}, {"settings": {"lam": 2.0}}, {"rounds": 1}):
        control = {**ASKED, **asked, "control": True}
        held, failed = ([{"gap": gap}] for gap in (1e-9, 1.0))
        assert not judgement(attack, held, control)["passed"]
        assert judgement(attack, failed, control)["passed"]
        assert judgement(attack, failed, control)["standing"] == ""


def test_stored_numbers_are_judged_again_without_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_study(fake_studies.study("plain"), Options(output=tmp_path), quiet())
    before = json.loads((tmp_path / "plain" / "summary.json").read_text())

    def never(setting: Any) -> dict[str, Any]:
        raise AssertionError("measured")

    stricter = fake_studies.study(
        "plain", measure=never, always=(Claim("gap", at_most(1e-10)),), paper=(NEAR,)
    )
    monkeypatch.setattr(fake_studies, "PLAIN", stricter)
    assert main(["reproduce", "plain", "--judge", "--output", str(tmp_path)]) == 1
    after = json.loads((tmp_path / "plain" / "summary.json").read_text())
    assert (before["passed"], after["passed"], after["standing"]) == (True, False, "differs")
    assert before["metrics"] == after["metrics"]
    assert before["commit"] == after["commit"]


def test_a_check_on_what_was_not_measured_then_is_named_and_neither_passes_nor_fails() -> None:
    later = fake_studies.study("plain", always=(SMALL, Claim("later", at_most(1))))
    for finals, stored, passed, unjudged in (
        ([{"gap": 0.0}], True, True, ["later"]),
        ([{"gap": 1.0}], True, False, ["later"]),
        ([{"gap": 0.0}], False, False, []),
        # What was measured and is not a number fails, and hides behind nothing.
        ([{"gap": 0.0, "later": NAN}], True, False, []),
    ):
        found = judgement(later, finals, ASKED, stored=stored)
        assert (found["passed"], found["unjudged"]) == (passed, unjudged)
        assert len(found["checks"]) == 2 - len(unjudged)


def test_what_was_never_measured_cannot_be_judged(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--judge: expected results in .*summary\.json"):
        judge_again(fake_studies.PLAIN, tmp_path)


NAMES = [name for name in STUDIES if (RESULTS / name / "summary.json").exists()]


def test_every_study_is_stored_and_names_what_the_paper_says_and_where() -> None:
    assert set(NAMES) >= {name for name in STUDIES if name not in fake_studies.ALL}
    for name in NAMES:
        paper = find_study(name).paper
        assert any(isinstance(one, Stated) for one in paper), name
        for one in paper:
            assert one.where.startswith(PLACES) or "Appendix" in one.where, one
            if isinstance(one, Stated):
                assert one.what, one
                assert one.why, one


# A study of our own is held against what was predicted before it was measured, or another paper.
PLACES = (
    "predicted",
    "Allouah",
    "Bouaziz",
    "Boudou",
    "Theorem",
    "Proposition",
    "Lemma",
    "Definition",
    "Section",
    "Figure",
    "Table",
    "Appendix",
)


def kept(name: str) -> list[dict[str, float]]:
    return finals_of(json.loads((RESULTS / name / "summary.json").read_text()))


@pytest.mark.parametrize("name", NAMES)
def test_every_check_and_every_comparison_of_a_study_can_come_out_otherwise(name: str) -> None:
    """Each by some one metric: one that compares a number with itself cannot."""
    study, finals = find_study(name), kept(name)
    sound = {check.name for check in study.checks_of(finals) if check.passed}
    same = {one.what for one in study.compare(finals) if one.standing == "reproduced"}
    assert sound
    for metric in dict.fromkeys(key for final in finals for key in final):
        for value in (1e9, -1e9, NAN):
            other = [{**final, metric: value} if metric in final else final for final in finals]
            sound -= {check.name for check in study.checks_of(other) if not check.passed}
            same -= {one.what for one in study.compare(other) if one.standing != "reproduced"}
    assert not sound, "no value of any metric makes these fail"
    assert not same, "no value of any metric makes these differ"
