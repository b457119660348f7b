"""What the report says of studies and of one's own runs, and where it says that they come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import experiments
from experiments.report import rendering
from experiments.report.rendering import plain
from experiments.studies.catalogue import STUDIES
from pfl_flower.run.checks import Check
from pfl_flower.run.presets import description
from tests.support import fake_studies
from tests.support.fake_studies import (
    CHECKS,
    HOSTILE,
    leave,
    leave_run,
    leave_sweep,
    markdown_tables,
    read,
)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_studies.register(monkeypatch)


def test_claim_and_words_stand_in_page_and_table(tmp_path: Path) -> None:
    leave(tmp_path, "good", finals=[{"accuracy": 0.75, "gap": 2e-8}])
    leave(tmp_path, "absent", finals=[{"other": 1.0}])
    leave(tmp_path, "nasty", finals=[{HOSTILE: 1.0}])
    page, rows = read(tmp_path)
    said = {row[0][2:]: row[1:3] for row in rows[2:]}
    assert said["good"] == ["Good is claimed.", "75% of the way, to 2e-08."]
    assert "Good is claimed." in page.text and "75% of the way, to 2·10 -8 ." in page.text
    assert said["absent"][1] == "See the checks: these results hold no metric 'accuracy'."
    assert said["plain"][1] == "Nothing yet."
    assert said["nasty"] == [plain(HOSTILE), plain(f"{HOSTILE} 1")]


def test_a_check_that_failed_is_named_on_the_card_and_in_the_table(tmp_path: Path) -> None:
    leave(tmp_path, "fails", checks=[Check("too much", 0.5, ">= 0.9", False)])
    page, rows = read(tmp_path, ["fails"])
    assert "too much = 0.5, expected >= 0.9." in page.text
    assert rows[2][CHECKS] == "0 of 1 passed; not: too much"


def test_runs_of_ones_own_stand_in_page_and_table(tmp_path: Path) -> None:
    leave(tmp_path, "good")
    leave_run(tmp_path, "mine", finals=[{"accuracy_true": 0.25}, {"accuracy_true": 0.75}], lam=0.5)
    leave_run(tmp_path, HOSTILE.replace("/", "-"), finals=[{"x": 1.0}], target=HOSTILE)
    leave_run(tmp_path, "digits-l2")
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "rounds.csv").write_text("round\n1\n2\n")
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "summary.json").write_text('{"metrics": 3}')
    (tmp_path / "other").mkdir()
    page, _ = read(tmp_path, ["good"])
    runs = markdown_tables((tmp_path / "report.md").read_text())[2][2:]
    shown = {row[0][2:]: row[1:4] for row in runs}
    assert shown["mine"] == [
        "lam = 0.5",
        "In the end: accuracy on true labels 50.0%.",
        "passed",
    ]
    assert shown["digits-l2"][0] == "none"
    assert shown["stopped"] == ["none", "2 rounds are kept, and no summary.", "unfinished"]
    assert shown["wrong"][2] == "unreadable"
    assert "other" not in shown and "good" not in shown and len(shown) == 5
    assert {f"run-{i}" for i in range(1, 6)} <= page.ids
    assert "lam = 0.5" in page.text and page.text.count(HOSTILE) >= 1
    assert "script" not in page.tags
    assert description("digits-l2") in page.text


def test_sweeps_of_ones_own_stand_in_page_and_table(tmp_path: Path) -> None:
    cells = [
        {"lam": 0.1, "seed": 1, "accuracy_true": 0.5, "passed": True, "error": ""},
        {"lam": 0.1, "seed": 2, "accuracy_true": 0.75, "passed": True, "error": ""},
        {"lam": 1.0, "seed": 1, "accuracy_true": 0.25, "passed": False, "error": ""},
        {"lam": 10.0, "seed": 1, "passed": False, "error": HOSTILE},
    ]
    leave_sweep(tmp_path, "broken off", cells, planned=6)
    leave_sweep(tmp_path, "fine", cells[:2], planned=2)
    leave_sweep(tmp_path, "going on", cells[:2], planned=6)
    leave_sweep(tmp_path, "seeds", [{"seed": 1, "passed": True, "error": ""}], planned=1)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "sweep.csv").write_text("a,b\n1,2\n")
    leave_run(tmp_path / "fine", "lam=0.1")
    page, _ = read(tmp_path, ["good"])
    rows = markdown_tables((tmp_path / "report.md").read_text())[2][2:]
    assert [row[1:6] for row in rows if row[0] == "| broken off"] == [
        ["lam = 0.1", "accuracy on true labels 62.5% ± 17.7%", "passed", "2 of 2 passed", "2"],
        ["lam = 1.0", "accuracy on true labels 25.0%", "FAILED", "0 of 1 passed", "1"],
        ["lam = 10.0", "-", "error", "0 of 1 passed", "1"],
    ]
    assert [row[1:4] for row in rows if row[0] == "| seeds"] == [["none", "-", "passed"]]
    assert page.row("0.1") == ["0.1", "62.5% ± 17.7%", "2 of 2"]
    assert f"Broke off at lam = 10.0: {HOSTILE}." in "".join(page.words)
    ends = {
        name: rendering.read_report(tmp_path, []).sweeps[i].status
        for i, name in enumerate(["broken off", "fine", "foreign", "going on", "seeds"])
    }
    assert ends == {
        "broken off": "error",
        "fine": "passed",
        "foreign": "unreadable",
        "going on": "unfinished",
        "seeds": "passed",
    }
    assert "2 of 6 cells" in page.text and "1 of 1 cells" in page.text
    made = markdown_tables((tmp_path / "report.md").read_text())[-1][2:]
    assert [row[1] for row in made] == ["fine |", "fine |"]


def test_the_foot_says_what_each_commit_and_machine_has_made(tmp_path: Path) -> None:
    summary = leave(tmp_path, "good")
    leave_run(tmp_path, "mine")
    read(tmp_path, ["good", "plain"])
    made = markdown_tables((tmp_path / "report.md").read_text())[-1][2:]
    assert [row[1] for row in made] == ["good, mine |", "good, mine |"]
    assert made[0][0] == f"| {summary['commit']}"


def test_the_table_that_is_kept_is_what_the_kept_results_make(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Made again by ``python -m experiments report --output experiments/results``."""
    monkeypatch.undo()
    kept = Path(experiments.__file__).parent / "results"
    made = rendering.table(rendering.read_report(kept, list(STUDIES)))
    assert made == (kept / "report.md").read_text()
    # Neither a share nor a number is less than nothing by the sign alone.
    assert not re.findall(r"-0(?:\.0+)?(?:%|\b(?!\.))", made)
