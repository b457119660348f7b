"""Every example is run, as a script and smaller, and shows what it says."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pfl_flower as pfl
from experiments import examples

FOLDER = Path(examples.__file__).parent
SMALL = {"rounds": 8, "points_per_user": 20, "progress": False}


def ends(grid: pfl.Sweep, metric: str) -> list[float]:
    """Return a metric of every cell, in the order of the sweep."""
    return [float(value) for value in grid.rows[metric]]


def attack(grid: pfl.Sweep) -> bool:
    cga, uncancelled, under_l2, the_same = ends(grid, "distance_to_target")
    misread = ends(grid, "accuracy_target")
    alike = under_l2 == pytest.approx(the_same, rel=1e-3)
    return cga < 0.1 < uncancelled < 0.1 * under_l2 and misread[1] > 0.9 and alike


def regularizer(grid: pfl.Sweep) -> bool:
    true = ends(grid, "accuracy_true")
    return min(true[:2]) > 0.6 and true[2] < 0.1 and ends(grid, "distance_to_target")[3] < 0.1


def rule(grid: pfl.Sweep) -> bool:
    hacked, *held = ends(grid, "accuracy_true")
    return hacked < 0.1 and min(held) > 0.6


def data(grid: pfl.Sweep) -> bool:
    hacked, *held = ends(grid, "accuracy_true")
    return hacked < 0.1 and min(held) > 0.9


SHOWN: dict[str, Callable[[pfl.Sweep], bool]] = {
    "own_attack": attack,
    "own_data": data,
    "own_regularizer": regularizer,
    "own_rule": rule,
}


def test_every_example_has_a_row_here() -> None:
    study = {"anyone"}  # not of a screen: tests/experiments/test_anyone.py
    assert {path.stem for path in FOLDER.glob("*.py")} - {"__init__"} - study == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_shows_what_it_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module: Any = importlib.import_module(f"{examples.__name__}.{name}")
    assert f"    python -m {module.__name__}\n" in module.__doc__
    grid = module.main(**SMALL)
    assert grid.passed and not grid.errors
    assert str(grid.table("accuracy_target").columns[0]) in capsys.readouterr().out
    assert SHOWN[name](grid), grid.table("accuracy_true", "accuracy_target", "distance_to_target")
