"""Robust averages: against Flower's own, on top of FedOpt, and what they refuse."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    MultiKrum,
    QFedAvg,
)

import pfl_flower as pfl
from pfl_flower.aggregation.table import AGGREGATIONS, rows_needed
from pfl_flower.interop.checked import TooFewRepliesError
from pfl_flower.interop.robust import robust_mean
from pfl_flower.support.errors import ConfigError
from tests.interop.apps import CLIENTS, PULL, SIZE, client_app, models, optimum, play

NONE = {"fraction_evaluate": 0.0}
ATTACK = {"attack": "gaussian", "partitions": [3], "strength": 3.0}


def attacked(strategy: Any, kind: str = "float64", clients: int = CLIENTS) -> list[np.ndarray]:
    random.seed(2)
    mod = pfl.attack_mod("gaussian", partitions=[3], strength=3.0)
    return models(client_app(mod), strategy, kind=kind, clients=clients)


@pytest.mark.parametrize("clients", [5, 8, 11])
@pytest.mark.parametrize(
    ("ours", "flower"),
    [
        (lambda n: pfl.RobustFedAvg("median", **NONE), lambda n: FedMedian(**NONE)),
        (
            lambda n: pfl.RobustFedAvg("trimmed-mean", 1, **NONE),
            lambda n: FedTrimmedAvg(beta=1.5 / n, **NONE),
        ),
        (
            lambda n: pfl.RobustFedAvg("krum", 1, **NONE),
            lambda n: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=1, **NONE),
        ),
        (
            lambda n: pfl.RobustFedAvg("multi-krum", 1, options={}, **NONE),
            lambda n: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=n - 1, **NONE),
        ),
    ],
)
def test_the_same_numbers_as_flowers_own(ours: Any, flower: Any, clients: int) -> None:
    """MultiKrum averages by the clients' own word of their examples: here they say the same."""
    app = {"examples": lambda partition: 10}
    found = []
    for strategy in (ours(clients), flower(clients)):
        random.seed(2)
        mod = pfl.attack_mod("gaussian", partitions=[3], strength=3.0)
        found.append(models(client_app(mod, **app), strategy, clients=clients))
    # Flower takes distances in float32.
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_the_plain_sum_is_the_mean_without_weights() -> None:
    ways = [PULL * (optimum(n) - 1.0) for n in range(CLIENTS)]
    first = models(client_app(), pfl.RobustFedAvg("sum", **NONE), rounds=1)[0]
    np.testing.assert_allclose(first, 1.0 + np.mean(ways, axis=0), rtol=1e-12)


@pytest.mark.parametrize("rule", [name for name, row in AGGREGATIONS.items() if not row.rounds])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_every_rule_of_the_table_serves_and_keeps_types(rule: str, kind: str) -> None:
    # Bulyan needs seven replies for one strategic one, and there are five.
    few = (rows_needed(rule, 1) or 0) > CLIENTS
    strategy = pfl.RobustFedAvg(rule, 0 if few else None, **NONE)
    result, _ = play(client_app(), strategy, kind=kind, rounds=2)
    kinds = {name: str(array.numpy().dtype) for name, array in result.arrays.items()}
    assert kinds == {"weight": kind, "count": "int64", "bias": kind}
    assert int(result.arrays["count"].numpy()) == 7
    assert set(result.train_metrics_clientapp[1]) == {"loss", "taken-out"}


@pytest.mark.parametrize("rule", [name for name, row in AGGREGATIONS.items() if row.rounds])
def test_a_rule_that_sees_rounds_is_one_line(rule: str) -> None:
    with pytest.raises(ConfigError, match=f"rule = {rule}: expected a rule of rows alone: sum, me"):
        pfl.RobustFedAvg(rule)


def test_f_beyond_what_a_rule_ever_withstands_is_one_line() -> None:
    with pytest.raises(ConfigError, match="tolerance = 13: expected at most 12"):
        pfl.RobustFedAvg("mda", 13)


@pytest.mark.parametrize("rule", ["median", "multi-krum", "trimmed-mean", "geometric-median"])
def test_one_attacker_does_not_move_them_far(rule: str) -> None:
    honest = models(client_app(), rounds=20)[-1]
    far = np.linalg.norm(models(client_app(pfl.attack_mod(**ATTACK)), rounds=20)[-1] - honest)
    strategy = pfl.RobustFedAvg(rule, **NONE)
    found = models(client_app(pfl.attack_mod(**{**ATTACK, "strength": 1e6})), strategy, rounds=20)
    assert np.linalg.norm(found[-1] - honest) < 1.0 < far * 1e3


@pytest.mark.parametrize("on", [FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad, FedProx])
def test_servers_optimisers_step_towards_the_robust_mean(on: Any) -> None:
    """With the plain mean of clients that count alike it is the strategy itself."""
    app = {"examples": lambda partition: 10}
    options = {"proximal_mu": 0.1} if on is FedProx else {}
    found = []
    for wrap in (False, True):
        random.seed(1)
        inner = on(fraction_evaluate=0.0, **options)
        strategy = pfl.RobustFedAvg("sum", on=inner) if wrap else inner
        found.append(models(client_app(**app), strategy, rounds=4))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)


def test_what_clients_say_of_their_examples_does_not_count() -> None:
    boast = pfl.attack_mod("honest", num_examples=10**9, partitions=[0])
    for rule in ("median", "sum"):
        random.seed(3)
        plain = models(client_app(), pfl.RobustFedAvg(rule, **NONE))
        random.seed(3)
        boasting = models(client_app(boast), pfl.RobustFedAvg(rule, **NONE))
        assert np.array_equal(plain, boasting)


def test_the_order_of_the_replies_does_not_count() -> None:
    found = []
    for seed in range(4):
        random.seed(seed)
        found.append(models(client_app(), pfl.RobustFedAvg("geometric-median", **NONE)))
    assert all(np.array_equal(found[0], other) for other in found)


def test_wrong_replies_are_taken_out_first() -> None:
    strategy = pfl.RobustFedAvg("median", **NONE)
    mod = pfl.attack_mod("nan", partitions=[1])
    result, _ = play(client_app(mod), strategy, rounds=1)
    assert result.train_metrics_clientapp[1]["taken-out-not-finite"] == 1
    with pytest.raises(TooFewRepliesError, match="4 right replies, 5 are needed"):
        play(client_app(mod), pfl.RobustFedAvg("krum", 1, **NONE), rounds=1)


def test_a_rule_of_ones_own() -> None:
    def first(rows: torch.Tensor) -> torch.Tensor:
        return len(rows) * rows[0]

    for rule in (first, "tests.interop.test_robust:first_row"):
        found = models(client_app(), pfl.RobustFedAvg(rule, **NONE), rounds=1)[0]
        np.testing.assert_allclose(found, 1.0 + PULL * (optimum(0) - 1.0), rtol=1e-12)


def first_row(rows: torch.Tensor) -> torch.Tensor:
    return len(rows) * rows[0]


def test_counters_take_their_median() -> None:
    values = [{"w": np.zeros(1), "n": np.array(n)} for n in (3, 4, 900)]
    made = robust_mean(values[0], values, lambda rows: rows.sum(dim=0))
    assert made["n"] == 4 and made["n"].dtype == np.int64


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"rule": "no"}, "aggregation = no: expected sum, median"),
        ({"rule": "median", "tolerance": 1}, "tolerance = 1: expected none, median names no f"),
        ({"rule": "krum", "tolerance": -1}, "tolerance = -1: expected a whole number from 0"),
        ({"rule": "krum", "tolerance": 1.5}, "tolerance = 1.5"),
        ({"rule": "krum", "options": {"no": 1}}, "aggregation-options"),
        ({"rule": "nomod:f"}, "aggregation = nomod:f"),
        ({"rule": "krum", "no": 1}, "RobustFedAvg: .*no"),
        ({"rule": "krum", "on": FedAvg(), "fraction_train": 0.5}, "fraction_train: expected it in"),
        ({"rule": "krum", "on": QFedAvg(client_learning_rate=0.1)}, "on = QFedAvg"),
        ({"rule": "krum", "on": 5}, "on = int"),
        ({"rule": "krum", "max_norm": -1}, "max_norm = -1"),
    ],
)
def test_wrong_arguments_are_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(pfl.ConfigError, match=line) as error:
        pfl.RobustFedAvg(**given)
    assert "\n" not in str(error.value)


def test_rows_are_taken_in_float64() -> None:
    """float32 rows far from 0: Krum by differences finds the row that is nearest."""
    base = 1e4
    models_ = [{"w": np.full(SIZE, base + x, np.float32)} for x in (0.0, 0.01, 0.02, 0.03, 9.0)]
    rule = AGGREGATIONS.load("krum")
    made = robust_mean(models_[0], models_, lambda rows: rule(rows, tolerance=1))
    assert abs(float(made["w"][0]) - base) < 0.04
