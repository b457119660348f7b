"""Points that a script holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import pfl_flower as pfl
from pfl_flower.data.own.objects import own_data
from pfl_flower.support.errors import ConfigError, DataError

RUN: dict[str, Any] = {"rounds": 2, "nu": 0.1, "evaluate_every": 0}


def users(regression: bool = False) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Four users' points, 10 to 25 of three features."""
    draw = np.random.default_rng(5)
    sizes = (10, 15, 20, 25)
    answers = [draw.normal(size=n) if regression else np.arange(n) % 3 for n in sizes]
    return [(draw.normal(size=(n, 3)), y) for n, y in zip(sizes, answers, strict=True)]


class Pairs(Dataset[Any]):
    """A PyTorch data set that answers point by point."""

    def __init__(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        return torch.from_numpy(self.x[place]), self.y[place]


FORMS = {
    "arrays": lambda pair: pair,
    "tensors": lambda pair: tuple(map(torch.from_numpy, pair)),
    "lists": lambda pair: tuple(part.tolist() for part in pair),
    "tensor data set": lambda pair: TensorDataset(*map(torch.from_numpy, pair)),
    "data set": lambda pair: Pairs(*pair),
}


@pytest.mark.parametrize("regression", [False, True])
def test_every_form_is_the_same_run(regression: bool) -> None:
    ends = {
        name: pfl.run(
            data=[form(pair) for pair in users(regression)], strategic_users=3, **RUN
        ).rho.tolist()
        for name, form in FORMS.items()
    }
    assert all(rho == ends["arrays"] for rho in ends.values())
    assert len(ends["arrays"]) == (4 if regression else 12)


def test_each_user_trains_on_its_own_points_alone() -> None:
    result = pfl.run(data=users(), strategic_users=3, test_share=0.0, holdout=0.1, **RUN)
    assert result.passed
    pool = pfl.run(data=users()[3], users=3, strategic_users=2, points_per_user=8, **RUN)
    assert pool.passed and pool.config["partition"] == "draws"


def test_ten_thousand_users_of_three_points() -> None:
    draw = np.random.default_rng(5)
    many = [(draw.normal(size=(3, 2)), draw.normal(size=3)) for _ in range(10_000)]
    assert pfl.run(data=many, strategic_users="none", **RUN).passed


WRONG: dict[str, tuple[Any, str]] = {
    "nothing": ([], "expected points (x, y)"),
    "a number": (3, "data = a int: expected points (x, y)"),
    "other widths": ([users()[0], (np.ones((5, 2)), np.arange(5) % 2)], "[2, 3] features"),
    "other kinds": ([users()[0], users(True)[1]], "whole numbers, others' decimals"),
    "too few labels": ([(np.ones((5, 2)), np.arange(4))], "4 labels of 5 points"),
    "no points": ([Pairs(np.ones((0, 2)), np.ones(0))], "no points, expected at least 1"),
    "not finite": ([(np.full((5, 2), np.inf), np.arange(5) % 2)], "not finite in row 1"),
    "text": ([(np.full((5, 2), "a"), np.arange(5) % 2)], "expected numbers"),
    "one point each": (
        [(np.ones((1, 2)), np.full(1, 0.5))] * 3,
        "expected more than one of some user",
    ),
}


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=list(WRONG))
def test_what_does_not_fit_is_one_line(data: Any, message: str) -> None:
    with pytest.raises((ConfigError, DataError)) as refused:
        pfl.run(data=data, strategic_users="none", task="auto", **RUN)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_nothing_given_changes_nothing() -> None:
    assert own_data(None) == {}
