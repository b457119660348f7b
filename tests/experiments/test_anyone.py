"""The stranger's app: three lines of ours in it, and its study."""

from __future__ import annotations

import ast
import logging
import math
import re
from pathlib import Path

import pytest

from experiments.examples import anyone
from experiments.examples.anyone import APP, NONE, PLAIN, STUDY, draw, metrics, play, strangers_app
from experiments.studies.study import Setting
from pfl_flower.interop.table import MOD_ATTACKS
from tests.support.readmes import ROOT

RESULTS = ROOT / "experiments" / "results"


def test_the_app_takes_three_lines_of_ours() -> None:
    """One import, one mod, one strategy; the choices among all of them are in one file."""
    for path in sorted((APP / "fedavg_digits").glob("*.py")):
        if path.name != "choices.py":
            names = {
                name
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import | ast.ImportFrom)
                for name in (
                    [node.module]
                    if isinstance(node, ast.ImportFrom)
                    else [one.name for one in node.names]
                )
            }
            assert not {n for n in names if n and n.startswith(("pfl_flower", "experiments"))}


def test_the_choices_are_all_there_are() -> None:
    with strangers_app():
        from fedavg_digits import choices  # type: ignore[import-not-found]
    assert set(choices.ATTACKS) == set(MOD_ATTACKS)
    assert set(choices.STRATEGIES) == {*anyone.FLOWERS, *anyone.OURS}


def test_cells_become_metrics_and_a_table(tmp_path: Path) -> None:
    cells = {
        PLAIN: {
            NONE: {"accuracy": 0.9, "next": 0.01, "taken out": 0},
            "cga": {"accuracy": 0.1, "next": 0.8, "taken out": 0},
            "wrong-shape": {"accuracy": math.nan, "next": math.nan, "crashed": "ValueError"},
        }
    }
    found = metrics(cells)
    assert found[f"{PLAIN}, cga: lost"] == pytest.approx(0.8)
    assert found[f"{PLAIN}, wrong-shape: lost"] == 0.9
    assert found[f"{PLAIN}, wrong-shape: broke off"] == 1 == 1 - found[f"{PLAIN}, cga: broke off"]
    better = {PLAIN: {**cells[PLAIN], "cga": {"accuracy": 0.2, "next": 0.7, "taken out": 0}}}
    draw([{"cells": cells}, {"cells": better}], tmp_path)
    table = (tmp_path / "anyone.md").read_text()
    assert "| wrong-shape | broke off |" in table and "| cga | 0.15 (0.10 to 0.20) |" in table
    assert (tmp_path / "anyone.png").stat().st_size > 5000


def table(text: str) -> list[list[str]]:
    """Return the cells of the first Markdown table of a text, but for the line under its head."""
    lines = re.findall(r"^\| (.*) \|$", text, re.M)
    return [line.split(" | ") for line in lines if not line.startswith("---")]


def test_the_apps_readme_shows_stored_results() -> None:
    """Of the table that the study left, columns as they stand, in all of its rows."""
    stored = table((RESULTS / "anyone" / "anyone.md").read_text())
    shown = table((APP / "README.md").read_text())
    columns = [stored[0].index(name) for name in shown[0]]
    assert len(columns) > 3
    assert shown == [[row[column] for column in columns] for row in stored]


def test_a_run_is_a_function_of_its_seed(tmp_path: Path) -> None:
    def once(seed: int, folder: str) -> dict[str, object]:
        return play(Setting(seed=seed, folder=tmp_path / folder), "fedavg", "gaussian")

    level = logging.getLogger("flwr").level
    assert once(1, "a") == once(1, "b") != once(2, "c")
    assert logging.getLogger("flwr").level == level


@pytest.mark.slow
@pytest.mark.parametrize("control", [False, True])
def test_the_quick_study_holds_and_its_control_fails(tmp_path: Path, control: bool) -> None:
    result = STUDY.measure(Setting(seed=1, quick=True, control=control, folder=tmp_path))
    checks = {check.name: check.passed for check in STUDY.checks([result])}
    for claim in STUDY.success:
        assert checks[claim.title] != control, claim.title
    assert all(passed for name, passed in checks.items() if name not in STUDY.must_fail)
