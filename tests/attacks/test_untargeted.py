"""Untargeted attacks: their numbers, what they are told, and what they do to a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from flwr.app import RecordDict
from torch import Tensor

from clients.honest import HonestClient
from clients.node import node_clients
from clients.poisoned import PoisonedClient
from clients.strategic import StrategicClient
from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.untargeted import (
    GaussianNoise,
    InnerProduct,
    LittleIsEnough,
    MinMax,
    SignFlip,
    Untargeted,
    least_noticed,
)
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import build_problem
from pfl_flower.run.strategic_user import make_attack
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.seeding import generator
from pfl_flower.transport.broadcasts import Broadcast
from tests.support import reference_attacks
from tests.support.runs import configure, play, trajectory

DRAWN = ("little-is-enough", "inner-product", "min-max")
OWN = ("sign-flip", "gaussian")


def sample(rows: int, dim: int = 4, seed: int = 0) -> Tensor:
    draw = generator(seed, "reports", rows, dim)
    return 1 + torch.randn((rows, dim), generator=draw, dtype=torch.float64)


def seen(rows: Tensor | None, round: int = 1) -> Observation:
    rho = torch.zeros(4, dtype=torch.float64)
    return Observation(round=round, rho=rho, eta=0.1, eta_sum=0.0, accepted=rho, surrogates=rows)


def said(attack: Untargeted, rows: Tensor | None, round: int = 1) -> Tensor:
    report, _ = attack.update(attack.init(torch.zeros(4)), seen(rows, round))
    return report


ONE, FIVE = (7,), (7, 8, 9, 10, 11)
NUMBERS: list[tuple[Untargeted, Callable[[Any], Any]]] = [
    (SignFlip(datasets=ONE), lambda g: -g[0]),
    (SignFlip(datasets=ONE, strength=3.0), lambda g: -3 * g[0]),
    (InnerProduct(datasets=FIVE, strength=0.5), lambda g: -0.5 * g.mean(axis=0)),
    (LittleIsEnough(datasets=FIVE, strength=0.0), lambda g: g.mean(axis=0)),
    (
        LittleIsEnough(datasets=FIVE, strength=1.5),
        lambda g: g.mean(axis=0) - 1.5 * g.std(axis=0, ddof=1),
    ),
    (MinMax(datasets=FIVE), reference_attacks.min_max),
    (MinMax(datasets=FIVE[:2]), reference_attacks.min_max),
]


@pytest.mark.parametrize(("attack", "expected"), NUMBERS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_reported(attack: Untargeted, expected: Callable[[Any], Any], seed: int) -> None:
    rows = sample(len(attack.datasets), seed=seed)
    assert np.allclose(said(attack, rows).numpy(), expected(rows.numpy()), rtol=1e-9, atol=1e-9)


def test_min_max_is_no_outlier_and_no_stronger_attack_is_one_either() -> None:
    rows = sample(5)
    report = said(MinMax(datasets=FIVE), rows)
    farthest = torch.linalg.vector_norm(rows - report, dim=1).max()
    diameter = max(torch.linalg.vector_norm(a - b) for a in rows for b in rows)
    assert farthest == pytest.approx(float(diameter), rel=1e-12)
    equal = rows[:1].expand(5, -1)
    assert torch.equal(said(MinMax(datasets=FIVE), equal), equal.mean(dim=0))


def test_noise_has_the_length_that_was_asked_for_and_is_drawn_anew() -> None:
    attack = GaussianNoise(datasets=ONE, seed=1, user=7, strength=3.0)
    rows = sample(1)
    lengths = [float(said(attack, rows, t) @ said(attack, rows, t)) for t in range(400)]
    assert math.sqrt(np.mean(lengths)) == pytest.approx(3 * float(rows.norm()), rel=0.1)
    assert torch.equal(said(attack, rows, 1), said(attack, rows, 1))
    other = GaussianNoise(datasets=ONE, seed=1, user=8, strength=3.0)
    assert not torch.equal(said(attack, rows, 1), said(attack, rows, 2))
    assert not torch.equal(said(attack, rows, 1), said(other, rows, 1))


@pytest.mark.parametrize("rows", [None, sample(4)])
def test_an_attack_without_its_surrogates_is_refused(rows: Tensor | None) -> None:
    with pytest.raises(ValueError, match="expected 5 reports"):
        said(MinMax(datasets=FIVE), rows)


@pytest.mark.parametrize("users", [5, 12, 25, 50])
def test_the_least_noticed_deviation(users: int) -> None:
    values = [least_noticed(users, strategic) for strategic in range(1, users)]
    for strategic, value in enumerate(values, start=1):
        needed = math.floor(users / 2 + 1) - strategic
        part = (users - strategic - needed) / (users - strategic)
        if 0.5 <= part < 1:
            assert value == pytest.approx(scipy.stats.norm.ppf(part), abs=1e-9)
        assert 0 <= value < 4
    assert values[0] == pytest.approx(0, abs=0.1)
    assert values[-1] > 1


@pytest.mark.parametrize("solver", ["exact", "adam"])
@pytest.mark.parametrize("attack", [*OWN, *DRAWN])
def test_surrogates_are_the_honest_code_on_data_of_ones_own(attack: str, solver: str) -> None:
    """Known to the attacker: rho, eta, and what honest users with its datasets would report."""
    changes = {"attack": attack, "local_solver": solver, "attack_strength": ""}
    problem = build_problem(configure(**changes))
    client = StrategicClient(problem, (4,), RecordDict())
    datasets = (4,) if attack in OWN else (5, 6, 7, 8, 9)
    assert make_attack(problem, 4).datasets == datasets
    honest = HonestClient(problem, datasets, RecordDict())
    rho = problem.initial
    for t in (1, 2, 3):
        told = Broadcast(
            round=t, users=(4,), last_accepted=(0,), rho=rho, eta=0.1, eta_sum=0.1 * t - 0.1
        )
        asked = replace(told, users=datasets, members=datasets, last_accepted=(0,) * len(datasets))
        rows = torch.stack(list(honest.report(asked).gradients.values()))
        expected = said(make_attack(problem, 4), rows, t)
        assert torch.allclose(client.report(told).gradients[4], expected, rtol=1e-12)
        rho = rho - 0.1 * expected


def test_the_datasets_of_surrogates_are_nobodys() -> None:
    problem = build_problem(configure(users=3, strategic_users="2"))
    held = problem.datasets((0, 1, 2))
    drawn = problem.datasets((3, 4))
    assert [len(data.labels) for data in (*held, *drawn)] == [40, 20, 30, 30, 30]
    assert all(not torch.equal(a.features, b.features) for a in drawn for b in (held[2], held[0]))
    assert not torch.equal(drawn[0].features, drawn[1].features)


@pytest.mark.parametrize("regularizer", ["squared-l2", "l2", "smooth-l2"])
@pytest.mark.parametrize("attack", [*OWN, *DRAWN, "label-flip"])
def test_a_run_under_attack_is_plausible_and_does_not_depend_on_the_nodes(
    attack: str, regularizer: str
) -> None:
    changes = {"attack": attack, "regularizer": regularizer, "strategic_users": "3,4", "rounds": 4}
    one, five = (play(configure(**changes), nodes=nodes) for nodes in (1, 5))
    assert torch.allclose(trajectory(one), trajectory(five), rtol=0, atol=1e-9)
    assert all(len(record.accepted) == 5 for record in one)
    honest = play(configure(**{**changes, "strategic_users": "none"}))
    assert not torch.allclose(trajectory(one), trajectory(honest), rtol=0, atol=1e-4)
    for record in one:
        same = torch.equal(record.accepted[3], record.accepted[4])
        assert same == (attack in DRAWN)


@pytest.mark.parametrize("attack", ["sign-flip", "min-max", "label-flip", "data"])
def test_clients_of_one_node_leave_each_others_memory_alone(attack: str) -> None:
    """Single steps show whose memory is whose, and one node holds all of them."""
    changes = {"attack": attack, "local_solver": "adam", "rounds": 5}
    one, five = (play(configure(**changes), nodes=nodes) for nodes in (1, 5))
    assert torch.allclose(trajectory(one), trajectory(five), rtol=0, atol=1e-9)


@pytest.mark.parametrize("strategic", ["4", "3,4"])
def test_inner_products_turn_the_sum_around_by_default(strategic: str) -> None:
    record = play(configure(attack="inner-product", strategic_users=strategic, rounds=1))[0]
    honest = record.honest_sum
    assert float((honest + record.strategic_sum) @ honest) < 0
    weaker = configure(
        attack="inner-product", strategic_users=strategic, rounds=1, attack_strength=0.5
    )
    record = play(weaker)[0]
    assert float((honest + record.strategic_sum) @ honest) > 0


FLIPS = {
    "synthetic-logistic": {},
    "synthetic-linear": {},
    "digits": {"points_per_user": "30", "target_shift": "1,3"},
}


@pytest.mark.parametrize("dataset", FLIPS)
def test_label_flipping_is_the_honest_code_on_relabelled_data(dataset: str) -> None:
    config = configure(
        dataset=dataset, attack="label-flip", strategic_users="3,4", **FLIPS[dataset]
    )
    problem = build_problem(config)
    (client,) = node_clients(problem, (3, 4), "auto", RecordDict())
    assert type(client) is PoisonedClient
    assert PoisonedClient._answer is HonestClient._answer
    drawn = problem.datasets((3, 4))
    if dataset == "digits":
        wanted = [(drawn[0].labels + 1) % 10, (drawn[1].labels + 3) % 10]
    else:
        wanted = [-data.labels for data in drawn]
    theta = torch.stack([problem.target, -problem.target])
    data = [
        problem.population_of([type(one)(one.features, labels)])
        for one, labels in zip(drawn, wanted, strict=True)
    ]
    values = torch.cat([one.value(row[None]) for one, row in zip(data, theta, strict=True)])
    assert torch.allclose(client.population().value(theta), values, rtol=1e-12)
    assert client.evaluate() == {}


def test_label_flipping_moves_rho_towards_its_target() -> None:
    changes = {"attack": "label-flip", "rounds": 30}
    target = build_problem(configure()).target
    ends = [
        torch.linalg.vector_norm(play(configure(**changes, strategic_users=ids))[-1].rho - target)
        for ids in ("none", "4", "3,4")
    ]
    assert ends[0] > ends[1] > ends[2]


@pytest.mark.parametrize("attack", ["cga", "model", "data", "label-flip", "min-max"])
def test_a_strength_is_refused_where_it_means_nothing(attack: str) -> None:
    with pytest.raises(
        ConfigError, match=r"attack-strength = 2\.0: expected empty, unless attack = sign-flip"
    ):
        parse_config({"attack": attack, "attack-strength": 2.0})
