"""What is told of how well users are served: means, tails and gains, and a row for each user."""

from __future__ import annotations

import math

import pytest

from pfl_flower.run.columns import Table
from pfl_flower.run.served import Measure, Served, columns, metrics, users_text
from pfl_flower.run.user_figures import draw_served

ACCURACY, ERROR = Measure.of("softmax"), Measure.of("least-squares")
USERS = {
    4: Served(train=10, tests=4, theta=1.0, rho=0.25, alone=0.5),
    0: Served(train=30, tests=8, theta=0.5, rho=0.5, alone=None),
    2: Served(train=20, tests=2, theta=0.0, rho=0.5, alone=0.25),
}


@pytest.mark.parametrize(
    ("measure", "worst", "tail", "sign"), [(ACCURACY, 0.0, 0.1, 1), (ERROR, 1.0, 0.9, -1)]
)
def test_worst_and_gains_follow_what_is_better(
    measure: Measure, worst: float, tail: float, sign: int
) -> None:
    found = metrics(USERS, measure)
    assert (found["own_theta_mean"], found["own_theta_worst"]) == (0.5, worst)
    assert found["own_theta_tail"] == pytest.approx(tail)
    assert found["own_theta_std"] == pytest.approx(math.sqrt(1 / 6))
    assert found["own_gain_over_rho"] == pytest.approx(sign * (0.75 + 0 - 0.5) / 3)
    assert found["own_gain_over_alone"] == pytest.approx(sign * (0.5 - 0.25) / 2)
    assert found["own_better_than_alone"] == 0.5
    assert found["own_alone_mean"] == 0.375
    assert tuple(found) == columns()
    assert metrics({}, measure) == {}


def test_without_a_model_learned_alone_nothing_is_said_of_it() -> None:
    found = metrics({0: USERS[0]}, ACCURACY)
    assert set(columns()) - set(found) == {
        *(f"own_alone_{part}" for part in ("mean", "worst", "tail", "std")),
        "own_gain_over_alone",
        "own_better_than_alone",
    }


def test_every_user_has_a_row() -> None:
    text = users_text(
        USERS, ACCURACY, users=5, strategic=frozenset({3}), sizes=lambda user: (user, 7)
    )
    table = Table.from_csv(text)
    assert table["user"].tolist() == [0, 1, 2, 3, 4]
    assert table["role"].tolist() == ["honest"] * 3 + ["strategic", "honest"]
    assert table["train"].tolist() == [30, 1, 20, 3, 10]
    assert table["tests"].tolist() == [8, 7, 2, 7, 4]
    assert table["theta"][[0, 2, 4]].tolist() == [0.5, 0.0, 1.0]
    assert [math.isnan(value) for value in table["theta"]] == [False, True, False, True, False]
    assert math.isnan(table["alone"][0])
    assert set(table["measure"].tolist()) == {"accuracy"}


@pytest.mark.parametrize("measure", [ACCURACY, ERROR])
@pytest.mark.parametrize("alone", [True, False])
def test_the_picture_shows_sorted_values_and_gains(measure: Measure, alone: bool) -> None:
    known = USERS if alone else {0: USERS[0]}
    text = users_text(known, measure, users=5, strategic=frozenset(), sizes=lambda user: (9, 0))
    figure = draw_served(Table.from_csv(text), "title")
    left, right = figure.axes
    shown = {line.get_label(): line.get_ydata() for line in left.lines}
    assert list(shown["own model theta_n"])[1:] == ([0.0, 0.5, 1.0] if alone else [0.5])
    assert ("learned alone" in shown) == alone
    gains = [value for value in right.lines[1].get_ydata() if not math.isnan(value)]
    sign = measure.gain
    assert gains == ([sign * -0.25, sign * 0.5] if alone else [0.0])
    assert ("rho" in right.get_ylabel()) == (not alone)
    assert left.get_ylabel() == f"{measure.name} on own test set"
