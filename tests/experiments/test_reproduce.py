from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.report import entries
from experiments.report.text import command
from experiments.running.options import Options, parse_settings
from experiments.running.parser import parser
from experiments.studies import reproduce
from experiments.studies.measuring import run_study
from experiments.studies.study import Setting
from pfl_flower.run.checks import Claim, at_least
from pfl_flower.support.errors import ConfigError
from tests.support import fake_studies
from tests.support.fake_studies import SMALL, VERDICT, leave, quiet, read, study

WRONG = Claim("accuracy", at_least(0.99), "accuracy, too much asked")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_studies.register(monkeypatch)


def test_one_study_that_breaks_does_not_stop_the_next(tmp_path: Path) -> None:
    console = quiet()
    options = Options(output=tmp_path, fresh=True)
    outcomes = reproduce.reproduce(["good", "broken", "fails", "plain"], options, console)
    assert [(o.name, o.verdict, o.reason) for o in outcomes] == [
        ("good", "passed", ""),
        ("broken", "error", "ValueError: first [line] second line"),
        ("fails", "FAILED", "too much [to ask]"),
        ("plain", "passed", ""),
    ]
    assert all(outcome.seconds > 0 for outcome in outcomes)
    shown = console.export_text()
    for said in ("0/4", "3/4", "2 of 4 passed", outcomes[1].reason, "too much [to ask]"):
        assert said in shown
    assert "second line" in (tmp_path / "broken" / reproduce.ERROR_FILE).read_text()
    page, rows = read(tmp_path)
    assert {row[0][2:]: row[VERDICT] for row in rows[2:]}["broken"] == "error"
    assert "error: ValueError: first [line] second line" in page.text


def test_numbers_from_before_a_run_that_broke_off_are_marked(tmp_path: Path) -> None:
    leave(tmp_path, "broken")
    options = Options(output=tmp_path)
    assert reproduce.reproduce(["broken"], options, quiet())[0].verdict == "error"
    summary, trace = (tmp_path / "broken" / n for n in ("summary.json", reproduce.ERROR_FILE))
    os.utime(summary, (1, 1))
    page, rows = read(tmp_path, ["broken"])
    assert rows[2][VERDICT] == "error"
    assert "These numbers are from before." in page.text
    os.utime(trace, (0, 0))
    assert read(tmp_path, ["broken"])[1][2][VERDICT] == "passed"


def test_a_run_that_works_removes_the_trace(tmp_path: Path) -> None:
    trace = tmp_path / "good" / reproduce.ERROR_FILE
    trace.parent.mkdir()
    trace.write_text("old")
    reproduce.reproduce(["good"], Options(output=tmp_path), quiet())
    assert not trace.exists()


def test_an_interrupt_ends_the_run_with_the_table(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def interrupted(setting: Setting) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(fake_studies, "PLAIN", study("plain", measure=interrupted))
    console = quiet()
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce(["good", "plain", "fails"], Options(output=tmp_path), console)
    assert "1 of 3 run" in console.export_text()


def test_the_control_fails_when_a_claim_holds_all_the_same(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    outcome = reproduce.reproduce(["absent"], Options(output=tmp_path, control=True), quiet())[0]
    assert (outcome.verdict, outcome.reason) == ("FAILED", "passed in the control: gap")


@pytest.mark.parametrize(
    ("name", "changes", "verdict", "control"),
    [
        # In the control success must fail; what holds anyway and what depends on the runs may.
        ("good", {"success": (), "always": (WRONG,)}, "FAILED", "no control"),
        ("good", {"success": (WRONG,), "always": ()}, "FAILED", "passed"),
        ("good", {"success": (WRONG,), "always": (WRONG,)}, "FAILED", "passed"),
        ("good", {"success": (SMALL,), "always": ()}, "passed", "FAILED"),
        ("good", {"success": (SMALL, WRONG), "always": ()}, "FAILED", "FAILED"),
        ("fails", {"success": (), "always": (SMALL,)}, "FAILED", "no control"),
        ("fails", {"success": (WRONG,), "always": (SMALL,)}, "FAILED", "passed"),
    ],
)
def test_every_check_counts_and_in_the_control_those_of_success(
    name: str, changes: dict[str, Any], verdict: str, control: str, tmp_path: Path
) -> None:
    changed = replace(getattr(fake_studies, name.upper()), **changes)
    summary = run_study(changed, Options(output=tmp_path, fresh=True), quiet())
    assert summary["passed"] == (verdict == "passed")
    claimed = [claim.title for claim in (*changed.success, *changed.always)]
    assert [check["name"] for check in summary["checks"]][: len(claimed)] == claimed
    options = Options(output=tmp_path, fresh=True, control=True)
    if control == "no control":
        with pytest.raises(ConfigError, match="--control: expected a study of an attack"):
            run_study(changed, options, quiet())
    else:
        assert run_study(changed, options, quiet())["passed"] == (control == "passed")


def test_an_unknown_name_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NAME = nope: expected one of"):
        reproduce.reproduce(["good", "nope"], Options(output=tmp_path), quiet())
    assert not list(tmp_path.iterdir())


SETTINGS: list[dict[str, Any]] = [
    {},
    {"lam": 0.5, "users": 3, "poisoning-box": True},
    {"target-shift": "1", "points-per-user": "10,20", "dataset": "mnist", "attack": "true"},
    {"data-dir": "/a b/'c'", "target": '"q"', "name-of": "é\\n", "tolerance": 1e-10, "empty": ""},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_command_asks_for_the_same(settings: dict[str, Any]) -> None:
    config = {
        "engine": "simulation",
        "device": "cpu",
        "rounds": 3,
        "nodes": 2,
        "settings": settings,
        "quick": True,
        "control": True,
    }
    words = shlex.split(command("good", config, (1, 2, 9)))
    assert words[:3] == ["python", "-m", "experiments"]
    read = vars(parser().parse_args(words[3:]))
    assert read.pop("name") == "good"
    assert parse_settings(read.pop("settings")) == settings
    assert read["seeds"] == "1,2,9"
    assert {key: read[key] for key in config if key != "settings"} == {
        key: value for key, value in config.items() if key != "settings"
    }


def test_the_shortest_command_names_no_default(tmp_path: Path) -> None:
    leave(tmp_path, "good")
    assert entries.read_entry(tmp_path, "good").command == "python -m experiments run good"
    assert entries.read_entry(tmp_path, "plain").command == "python -m experiments run plain"
    leave(tmp_path, "plain", finals=[{"accuracy": 1.0}])
    assert entries.read_entry(tmp_path, "plain").command.endswith("run plain --seeds 1")
