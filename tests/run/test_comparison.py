from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfl_flower as pfl
from tests.support.runs import TINY

SMALL: dict[str, Any] = {k.replace("-", "_"): v for k, v in TINY.items()} | {"rounds": 3}


def test_what_differs_and_what_came_of_it(tmp_path: Path) -> None:
    near = pfl.run(**SMALL, output=tmp_path / "near")
    far = pfl.run(**SMALL, lam=10, regularizer="smooth-l2")
    found = pfl.compare(tmp_path / "near", far, near)
    assert list(found.runs) == ["near (1)", "run", "near (2)"]
    assert found.settings == {
        "regularizer": ["squared-l2", "smooth-l2", "squared-l2"],
        "lam": [1.0, 10.0, 1.0],
    }
    table = found.table()
    said = {row[""]: row["run"] for row in table.rows()}
    assert said["lam"] == "10"
    assert said["accuracy_true"] == f"{far.metrics['accuracy_true']:.4g}"
    figure = found.plot()
    assert len(figure.axes) == 3
    assert [line.get_label() for line in figure.axes[0].get_lines()] == list(found.runs)
    assert np.array_equal(
        figure.axes[2].get_lines()[1].get_ydata(), far.rounds["distance_to_target"]
    )
    assert {path.name for path in found.save(tmp_path / "out")} == {
        "compare.csv",
        "compare.png",
        "compare.pdf",
    }
    with pytest.raises(pfl.ConfigError, match="y = nothing: expected one of"):
        found.plot("nothing")


def test_points_of_a_sweep_and_runs_of_several_seeds(tmp_path: Path) -> None:
    grid = pfl.sweep(None, {"lam": [1, 10]}, seeds=(1, 2), progress=False, **SMALL)
    for seed in (1, 2):
        pfl.run(**SMALL, seed=seed, output=tmp_path / "preset" / f"seed-{seed}")
    seeds = pfl.load(tmp_path / "preset")
    assert isinstance(seeds, pfl.Sweep)
    assert seeds.rows["seed"].tolist() == [1, 2]
    assert seeds.table("accuracy_true")["seeds"].tolist() == [2]
    assert len(seeds.plot().axes) == 2
    found = pfl.compare(grid, tmp_path / "preset", tmp_path / "preset" / "seed-2")
    assert list(found.runs) == [
        "sweep: lam = 1",
        "sweep: lam = 10",
        "preset",
        "preset/seed-2",
    ]
    table = found.table()
    assert table.columns[:3] == ("run", "lam", "seeds")
    assert table["seeds"].tolist() == [2, 2, 2, 1]
    assert table["accuracy_true"][0] == table["accuracy_true"][2]
    assert " ± " in table["accuracy_true"][0]
    assert " ± " not in table["accuracy_true"][3]
    assert len(found.plot("norm_rho").axes[0].collections) == 3


def test_nothing_to_compare_is_said(tmp_path: Path) -> None:
    with pytest.raises(pfl.ConfigError, match="expected a run, or a sweep"):
        pfl.compare(tmp_path)
    with pytest.raises(pfl.ConfigError, match="at least one finished run"):
        pfl.compare()


OWN = [
    "theta_n on own test sets, mean user",
    "theta_n on own test sets, worst user",
    "rho on users' test sets, mean user",
]


def test_users_own_test_sets_are_drawn_besides_or_alone() -> None:
    """Of a run, of runs beside one another, and of a sweep."""
    draw = np.random.default_rng(2)
    users = [(draw.normal(size=(20, 2)), np.arange(20) % 2) for _ in range(3)]
    keys: dict[str, Any] = {"strategic_users": "none", "nu": 0.1, "rounds": 2, "evaluate_every": 1}
    tested = pfl.run(data=users, **keys)
    figure = pfl.compare(tested).plot()
    assert [axes.get_ylabel() for axes in figure.axes][-3:] == OWN and len(figure.axes) == 6
    assert np.array_equal(
        figure.axes[3].get_lines()[0].get_ydata(), tested.rounds["own_theta_mean"][1:]
    )
    alone = pfl.run(data=users, holdout=0.0, **keys)
    assert "accuracy_true" not in alone.metrics and alone.passed
    left = alone.plot().axes[0]
    assert left.get_ylabel() == "on users' own test sets, mean over users"
    assert len(left.get_lines()) == 3
    grid = pfl.sweep(None, {"lam": [1, 2]}, data=users, holdout=0.0, progress=False, **keys)
    assert [axes.get_ylabel() for axes in grid.plot().axes][1:] == [OWN[0], OWN[2]]
    untested = pfl.run(data=users, holdout=0.0, test_share=0.0, **keys)
    left = untested.plot().axes[0]
    assert left.get_ylabel() == "length of a step of the global model"
    assert np.array_equal(left.get_lines()[0].get_ydata(), untested.rounds["step_norm"][1:])
