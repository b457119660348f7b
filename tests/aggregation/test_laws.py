"""The laws of every rule of the table, and which rules are exempt: shown to be, not said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pfl_flower.aggregation.combination import OfRound, RunningRule
from pfl_flower.aggregation.rows import Rows
from pfl_flower.aggregation.table import AGGREGATIONS, most_tolerated
from pfl_flower.run.problem import build_problem
from pfl_flower.run.server_setup import ServerSetup
from pfl_flower.support.seeding import generator
from tests.support import reference_rules
from tests.support.runs import configure

USERS, DIM, F = 12, 5, 2
OWN = torch.tensor([1.0, 1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
FROM_ZERO = {"qrmed", "static-clipping", "adaptive-clipping", "fltrust", "history-clipping"}
"""Measure rows from 0, or from what the server holds: a shift of all rows is more than a shift."""
BY_COORDINATES = {
    "median",
    "trimmed-mean",
    "centred-clipping",
    "bulyan",
    "adaptive-clipping",
    "bucketing",
}
"""Look at coordinates, or hand on to a rule that does, or start from one: axes matter."""
KEEP_ALL = {
    "sum",
    "trimmed-mean",
    "multi-krum",
    "bulyan",
    "mda",
    "adaptive-clipping",
    "bucketing",
    "dnc",
}
"""Told that nobody is strategic, leave nobody out: they are the sum."""


class Given(ServerSetup):
    """A server whose own user reports a given row."""

    own = OWN

    def root(self, rho: Tensor, theta: Tensor, points: int, round: int) -> tuple[Tensor, Tensor]:
        return self.own, theta


class Server:
    """The server's rule in the rounds of a run."""

    def __init__(self, name: str, *, f: int = F, own: Tensor = OWN) -> None:
        told = f != F and most_tolerated(name, USERS) is not None
        keys = {"aggregation_tolerance": f} if told else {}
        config = configure(users=USERS, strategic_users="10,11", aggregation=name, **keys)
        self.setup = Given(build_problem(config))
        object.__setattr__(self.setup, "own", own)
        self.rule = RunningRule(config, self.setup, torch.zeros(DIM, dtype=torch.float64))

    def direction(self, rows: Tensor, round: int = 1) -> Tensor:
        kept = Rows(torch.arange(len(rows)), rows)
        rule = self.rule.at(round, torch.zeros(DIM, dtype=torch.float64))
        found = rule.direction(kept) if isinstance(rule, OfRound) else rule(rows)
        self.rule.remember(rule, kept)
        return found


def made(name: str, rows: Tensor, **keys: Any) -> Tensor:
    return Server(name, **keys).direction(rows)


def sample(seed: int, count: int = USERS) -> Tensor:
    draw = generator(seed, "rows of laws")
    return 1 + torch.randn((count, DIM), generator=draw, dtype=torch.float64)


def same(one: Tensor, other: Tensor, tolerance: float = 1e-8) -> bool:
    return bool((one - other).norm() <= tolerance * (1 + other.norm()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_shift_of_all_rows(name: str, seed: int) -> None:
    rows = sample(seed)
    shift = torch.tensor([3.0, -2.0, 0.5, 40.0, 0.0], dtype=torch.float64)
    moved = made(name, rows) + USERS * shift
    assert same(made(name, rows + shift), moved) == (name not in FROM_ZERO)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_turn_of_all_rows(name: str, seed: int) -> None:
    rows, draw = sample(seed), generator(seed, "turn")
    turn = torch.linalg.qr(torch.randn((DIM, DIM), generator=draw, dtype=torch.float64)).Q
    turned = made(name, rows @ turn, own=OWN @ turn)
    assert same(turned, made(name, rows) @ turn) == (name not in BY_COORDINATES)


@pytest.mark.parametrize("scale", [-2.0, -1.0, 1e-9, 8.0, 1e9])
@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_scale_of_all_rows_of_either_sign(name: str, scale: float) -> None:
    rows = sample(4)
    scaled = made(name, scale * rows, own=scale * OWN)
    assert same(scaled / scale, made(name, rows))
    # A rule that turned rows round, or mirrored them, would scale as well.
    assert float(made(name, rows) @ rows.sum(dim=0)) > 0


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_on_equal_rows_every_rule_is_the_sum(name: str) -> None:
    """Of the server's own, for ``fltrust``, which cuts any other row to the length of that."""
    row = OWN if name == "fltrust" else sample(5)[0]
    assert same(made(name, row.expand(USERS, -1)), USERS * row, 1e-13)
    other = sample(5)[0].abs()
    cut = USERS * other * OWN.norm() / other.norm()
    assert name != "fltrust" or same(made(name, other.expand(USERS, -1)), cut, 1e-13)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_where_nobody_is_strategic_the_sum(name: str) -> None:
    rows = sample(6)
    assert same(made(name, rows, f=0), rows.sum(dim=0), 1e-12) == (name in KEEP_ALL)
    # And with f = 2 they are another rule, or f would not reach them.
    if name in KEEP_ALL - {"sum"}:
        assert not same(made(name, rows), rows.sum(dim=0), 1e-3)


def bucketing(server: Server, rounds: list[np.ndarray]) -> list[np.ndarray]:
    found = []
    for number, rows in enumerate(rounds, 1):
        draw = server.setup.generator("buckets", number)
        dealt = torch.randperm(len(rows), generator=draw).tolist()
        pairs = [dealt[at : at + 2] for at in range(0, len(rows), 2)]
        means = np.array([sum(rows[i] for i in pair) / len(pair) for pair in pairs])
        found.append(len(rows) * reference_rules.trimmed_mean(means, F))
    return found


def dnc(server: Server, rounds: list[np.ndarray]) -> list[np.ndarray]:
    found = []
    for rows in rounds:
        centred = rows - rows.mean(axis=0)
        scores = [float(row @ np.linalg.svd(centred)[2][0]) ** 2 for row in centred]
        order = sorted(range(len(rows)), key=lambda i: scores[i])
        found.append(len(rows) * np.mean([rows[i] for i in order[: len(rows) - F]], axis=0))
    return found


def fltrust(server: Server, rounds: list[np.ndarray]) -> list[np.ndarray]:
    found, own = [], OWN.numpy()
    reach = reference_rules.distance(own, 0 * own)
    for rows in rounds:
        total, weights = np.zeros(DIM), 0.0
        for row in rows:
            size = reference_rules.distance(row, 0 * row)
            trust = max(0.0, sum(a * b for a, b in zip(row, own, strict=True)) / (size * reach))
            total, weights = total + trust * reach * row / size, weights + trust
        found.append(len(rows) * total / weights)
    return found


def history_clipping(server: Server, rounds: list[np.ndarray]) -> list[np.ndarray]:
    found, centre = [], np.zeros(DIM)
    momenta: dict[int, np.ndarray] = {}
    for rows in rounds:
        for user, row in enumerate(rows):
            momenta[user] = 0.9 * momenta[user] + 0.1 * row if user in momenta else row
        away = [momenta[user] - centre for user in range(len(rows))]
        sizes = [reference_rules.distance(one, 0 * one) for one in away]
        reach = sorted(sizes)[(len(rows) - 1) // 2]
        clipped = [z * min(1.0, reach / size) for z, size in zip(away, sizes, strict=True)]
        centre = centre + np.mean(clipped, axis=0)
        found.append(len(rows) * centre)
    return found


Slow = Callable[[Server, list[np.ndarray]], list[np.ndarray]]
SLOW: Mapping[str, Slow] = {
    "bucketing": bucketing,
    "dnc": dnc,
    "fltrust": fltrust,
    "history-clipping": history_clipping,
}
"""Of rules that see rounds; those of plain rows are in ``reference_rules``, by name."""


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_every_rule_has_a_slow_one(name: str) -> None:
    plain = hasattr(reference_rules, name.replace("-", "_")) or name == "sum"
    assert (name in SLOW) == AGGREGATIONS[name].rounds
    assert plain != AGGREGATIONS[name].rounds


@pytest.mark.parametrize("count", [USERS, USERS - 1])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", SLOW)
def test_rules_that_see_rounds_agree_with_slow_ones(name: str, seed: int, count: int) -> None:
    server, rounds = Server(name), [sample(10 * seed + t, count) for t in range(3)]
    expected = SLOW[name](server, [rows.numpy() for rows in rounds])
    for number, (rows, right) in enumerate(zip(rounds, expected, strict=True), 1):
        np.testing.assert_allclose(server.direction(rows, number).numpy(), right, rtol=1e-10)
