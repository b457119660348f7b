"""Data that do not agree with themselves, in a source of one's own: refused before round 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_flower.data.sources import Source
from pfl_flower.data.spec import DataSpec
from pfl_flower.data.synthetic import Synthetic
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.problem import build_problem
from pfl_flower.support.errors import DataError
from tests.support.runs import configure

CLASSES = 3


class Sound(Source):
    """Three classes in four features and a constant one."""

    loss, bias, outputs, inputs, most_points = "softmax", True, CLASSES, 5, 40

    def __init__(self, spec: DataSpec) -> None:
        del spec

    def points(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        features = torch.ones(count, self.inputs, dtype=torch.float64)
        features[:, :-1] = torch.rand((count, self.inputs - 1), generator=draw, dtype=torch.float64)
        return features, torch.arange(count) % CLASSES

    def draw(self, user: int, points: int, seed: int) -> UserData:
        return UserData(*self.points(points, 100 * seed + user))

    def test_set(self) -> tuple[Tensor, Tensor]:
        return self.points(30, 1)

    def training_set(self) -> tuple[Tensor, Tensor]:
        return self.points(60, 2)


Pair = tuple[Any, Any]
CHANGES: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "fewer labels": (lambda x, y: (x, y[:-1]), r"{n} points and {m} labels, expected as many"),
    "no points": (lambda x, y: (x[:0], y[:0]), r"0 points and 0 labels, expected as many, and at"),
    "one label": (lambda x, y: (x, y[0]), r"{n} points and 1 labels"),
    "labels of two sides": (lambda x, y: (x, y[:, None]), r"labels \({n}, 1\), expected one for"),
    "a feature more": (lambda x, y: (torch.cat([x, x], 1), y), r"\({n}, 10\), expected rows of 5"),
    "no rows": (lambda x, y: (x[0], y), r"features \(5,\), expected rows of 5 entries"),
    "a class too high": (lambda x, y: (x, y + (y == 2)), r"the label 3 in row 2, expected 0 to 2"),
    "a class below 0": (lambda x, y: (x, y - 1), r"the label -1 in row 0, expected 0 to 2"),
    "labels in float": (lambda x, y: (x, y.double()), r"torch.float64, expected class numbers in"),
    "not a number": (lambda x, y: (x.where(y[:, None] != 2, torch.nan), y), r"finite in row 2,"),
    "infinite": (lambda x, y: (x / (y[:, None] != 1), y), r"is not finite in row 1, expected"),
    "features in int": (lambda x, y: (x.long(), y), r"torch.int64, expected floating-point ones"),
    "no constant": (lambda x, y: (x + 1, y), r"has a last feature that is not 1, and bias is"),
    "lists": (lambda x, y: (x.tolist(), y.tolist()), r"a pair of list, list, expected two tensors"),
}  # fmt: skip
NONE = "no points", "test"
PARTS = {"training": ("training_set", 60), "test": ("test_set", 30), "drawn": ("draw", 20)}


def problem(kind: type[Source]) -> None:
    from pfl_flower.support.plugins import given

    build_problem(configure(dataset=given(kind), points_per_user="20", users=5))


def altered(method: str, change: Callable[[Tensor, Tensor], Any]) -> type[Source]:
    def changed(self: Source, *arguments: Any) -> Any:
        found = getattr(Sound, method)(self, *arguments)
        if isinstance(found, UserData):
            return UserData(*change(found.features, found.labels))
        return change(*found)

    return type("Altered", (Sound,), {method: changed})


def test_a_sound_source_is_taken() -> None:
    problem(Sound)


def test_there_need_be_no_common_test_set() -> None:
    problem(altered("test_set", CHANGES["no points"][0]))


@pytest.mark.parametrize(
    ("change", "part"),
    [(change, part) for change in CHANGES for part in PARTS if (change, part) != NONE],
)
def test_points_that_do_not_agree(change: str, part: str) -> None:
    alter, message = CHANGES[change]
    method, count = PARTS[part]
    message = message.format(n=count, m=count - 1)
    where = "what user 0 draws" if part == "drawn" else f"its {part} set"
    with pytest.raises(DataError, match=f"^dataset = .*Altered.*: {where} .*{message}") as caught:
        problem(altered(method, alter))
    assert "\n" not in str(caught.value)


def made(**members: Any) -> type[Source]:
    return type("Altered", (Sound,), members)


def fails(*_: Any) -> Any:
    raise RuntimeError("no\nsuch file")


class Weighted(Sound):
    def draw(self, user: int, points: int, seed: int) -> UserData:
        return replace(super().draw(user, points, seed), weights=torch.ones(points))


class Forgetful(Sound):
    times = 0

    def draw(self, user: int, points: int, seed: int) -> UserData:
        Forgetful.times += 1
        return super().draw(user, points, seed + Forgetful.times)


class Short(Sound):
    def draw(self, user: int, points: int, seed: int) -> UserData:
        return super().draw(user, points - 1, seed)


SOURCES: dict[str, tuple[type[Source], str]] = {
    "inputs": (made(inputs=0), "inputs = 0, expected a whole number above 0$"),
    "inputs in float": (made(inputs=5.0), "inputs = 5.0, expected a whole number above 0$"),
    "outputs": (made(outputs=None), "outputs = None, expected a whole number above 0$"),
    "one class": (made(outputs=1), "outputs = 1, expected 2 classes or more for a softmax loss$"),
    "two answers": (
        made(outputs=2, loss="logistic"),
        "outputs = 2, expected 1 for a logistic loss$",
    ),
    "most points": (made(most_points=-1), "most_points = -1, expected a whole number above 0$"),
    "no pair": (made(test_set=lambda self: None), "its test set is no pair, expected features and"),
    "an exception": (
        made(training_set=fails),
        r"its training or test set cannot be had \(.*test_consistency.py:\d+: RuntimeError",
    ),
    "an exception in a draw": (
        made(draw=fails),
        r"its draw cannot be had \(.*: RuntimeError: no such",
    ),
    "no data": (made(draw=lambda *_: (1, 2)), "its draw is a tuple, expected a UserData$"),
    "weights": (Weighted, "draws has weights, expected None: reduction says what a point counts$"),
    "another time": (Forgetful, "not the same twice, expected a function of seed and user$"),
    "fewer points": (Short, "what user 0 draws has 19 points, expected 20$"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_sources_that_are_none(case: str) -> None:
    kind, message = SOURCES[case]
    with pytest.raises(DataError, match=message) as caught:
        problem(kind)
    assert "\n" not in str(caught.value)


class Answers(Synthetic):
    """Queries, of which a loss expects answers that the test set does not have."""

    expected, divisor = "logistic", 2.0

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(self.expected, 4, spec.seed)

    def test_set(self) -> tuple[Tensor, Tensor]:
        features, labels = super().test_set()
        return features, labels.sign() / self.divisor


class Infinite(Answers):
    expected, divisor = "least-squares", 0.0


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Answers, r"the label -?0.5 in row 0, expected 1 or -1$"),
        (Infinite, r"the label -?inf in row 0, expected a number$"),
    ],
)
def test_answers_that_the_loss_does_not_know(kind: type[Source], message: str) -> None:
    with pytest.raises(DataError, match=f"its test set has {message}"):
        problem(kind)
