"""Who holds what: counted as it is dealt, printed, drawn, and written with every run that deals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from experiments.__main__ import main
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.holdings import Holdings
from pfl_flower.run.problem import build_problem
from pfl_flower.run.user_figures import draw_holdings, holdings_title
from tests.support.runs import TINY

DATA = "tests.data.test_partitions:"


def config(**keys: Any) -> RunConfig:
    spelled = {key.replace("_", "-"): value for key, value in keys.items()}
    return parse_config({"strategic-users": "3", **spelled})


@pytest.mark.parametrize(
    ("keys", "classes"),
    [
        ({}, 10),
        ({"partition": "dirichlet"}, 10),
        ({"partition": "shards", "users": 60, "points_per_user": "3"}, 10),
        ({"partition": "natural", "dataset": DATA + "owned", "label_noise": 0.5}, 4),
        ({"partition": "natural", "dataset": DATA + "Line"}, 1),
        ({"dataset": "synthetic-logistic", "points_per_user": "40,20"}, 2),
    ],
)
def test_counts_are_of_what_users_hold(keys: dict[str, Any], classes: int) -> None:
    problem = build_problem(config(**keys))
    held, users = Holdings.of(problem), problem.config.users
    assert held.train.shape == held.tests.shape == (users, classes)
    assert held.train.sum(axis=1).tolist() == list(problem.points)
    for user in (0, 3, users - 1):
        tests = problem.source.own_tests(user)
        assert held.tests[user].sum() == (0 if tests is None else len(tests.labels))
        if tests is not None and classes > 1:
            counted = np.bincount(tests.labels.numpy(), minlength=classes)
            assert held.tests[user].tolist() == counted.tolist()
    assert held.strategic == {3}


def printed(held: Holdings) -> str:
    console = Console(width=200)
    with console.capture() as said:
        console.print(held.table())
    return said.get()


def test_the_table_shows_each_of_few_and_the_extremes_of_many() -> None:
    few = Holdings.of(build_problem(config(partition="similarity")))
    lines = printed(few).splitlines()
    row = next(line for line in lines if "3 (strategic)" in line)
    cells = [cell.strip() for cell in row.split("│")][2:-1]
    assert cells[:-3] == [str(count) if count else "" for count in few.points[3]]
    assert cells[-3:] == ["10", str(few.train[3].sum()), str(few.tests[3].sum())]
    many = Holdings.of(build_problem(config(partition="dirichlet", users=100)))
    sizes = many.points.sum(axis=1)
    text = printed(many)
    for name, size in (("fewest", sizes.min()), ("most", sizes.max())):
        user = int(text.split(f" ({name} of 100)")[0].split()[-1])
        assert sizes[user] == size


@pytest.mark.parametrize("users", [2, 11, 90])
def test_the_picture_shows_every_point_and_who_is_strategic(users: int) -> None:
    settings = config(partition="dirichlet", users=users, strategic_users="1")
    held = Holdings.of(build_problem(settings))
    figure = draw_holdings(held, holdings_title(settings))
    assert figure.get_suptitle() == f"digits, {users} users, dirichlet, partition-alpha = 0.5"
    first, second = figure.axes[:2]
    if users == 90:
        curve, strategic = first.lines
        assert curve.get_ydata().tolist() == sorted(held.points.sum(axis=1))
        assert strategic.get_ydata().tolist() == [held.points[1].sum()]
        assert second.images[0].get_array().shape == (10, 90)
    else:
        areas = np.concatenate([dots.get_sizes() for dots in first.collections])
        assert len(areas) == (held.points > 0).sum()
        shown = sum(bar.get_height() for bars in second.containers for bar in bars)
        assert shown == held.points.sum()
    assert len(figure._repr_png_()) > 10_000


def test_the_command_tells_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--set", "partition=shards", "points-per-user=200", "--output", str(tmp_path)]
    assert main(["data", "digits-l2", *words]) == 0
    said = capsys.readouterr().out
    assert "10 (strategic)" in said
    assert "left out: training points that fell to no user: 7 (partition = shards)" in said
    assert "fewer training points than points-per-user: 11 (user 0, user 1, user 2, ...)" in said
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("digits-l2-with-")
    assert sorted(path.name for path in folder.iterdir()) == [
        "holdings.pdf",
        "holdings.png",
    ]
    assert main(["data", "digits-l2", "--set", "partition=shards", "users=2000"]) == 2
    assert capsys.readouterr().err.startswith("users = 2000: expected at most 1,437")


def test_a_run_that_deals_leaves_the_picture(tmp_path: Path) -> None:
    import pfl_flower as pfl

    dealt = {"dataset": DATA + "owned", "users": 4, "strategic_users": "3", "rounds": 1, "nu": 0.1}
    pfl.run(partition="shards", output=tmp_path / "dealt", **dealt)
    assert (tmp_path / "dealt" / "holdings.png").exists()
    pfl.run(output=tmp_path / "drawn", **{**TINY, "rounds": 1})
    assert not (tmp_path / "drawn" / "holdings.png").exists()
