"""Robust averages: against Flower's own, on top of FedOpt, and what they refuse."""

from __future__ import annotations

import random
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import (
    Bulyan,
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
from pfl_flower.aggregation.history import HistoryClipping
from pfl_flower.aggregation.rounds import Received
from pfl_flower.aggregation.table import AGGREGATIONS, rows_needed
from pfl_flower.interop.checked import TooFewRepliesError
from pfl_flower.interop.robust import robust_mean
from pfl_flower.interop.rounds import AppSetup, Rounds
from pfl_flower.interop.rules import AppRule
from pfl_flower.support.errors import ConfigError
from tests.interop.apps import CLIENTS, PULL, SIZE, client_app, models, optimum, packed, play

NONE = {"fraction_evaluate": 0.0}
ATTACK = {"attack": "gaussian", "partitions": [3], "strength": 3.0}


def first_row(rows: torch.Tensor) -> torch.Tensor:
    return len(rows) * rows[0]


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


@pytest.mark.parametrize("clients", [9, 12])
def test_bulyan_is_flowers_where_two_stick_out(clients: int) -> None:
    """Flower takes the k - 2f best of one Krum, and here as well these are all but the two."""

    def forge(partition: int, values: dict[str, np.ndarray]) -> Any:
        far = {name: v if name == "count" else v + 40.0 for name, v in values.items()}
        return {"arrays": packed(far)} if partition == 8 else {}

    app = {"examples": lambda partition: 10, "forge": forge}
    found = []
    for strategy in (pfl.RobustFedAvg("bulyan", 1, **NONE), Bulyan(num_malicious_nodes=1, **NONE)):
        random.seed(2)
        mod = pfl.attack_mod("gaussian", partitions=[3], strength=1e3)
        found.append(models(client_app(mod, **app), strategy, clients=clients))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10, atol=1e-12)
    mean = models(client_app(**{"examples": app["examples"]}), clients=clients)
    assert not np.allclose(found[0], mean, atol=1e-3)


def test_the_plain_sum_is_the_mean_without_weights() -> None:
    ways = [PULL * (optimum(n) - 1.0) for n in range(CLIENTS)]
    first = models(client_app(), pfl.RobustFedAvg("sum", **NONE), rounds=1)[0]
    np.testing.assert_allclose(first, 1.0 + np.mean(ways, axis=0), rtol=1e-12)


RULES = [name for name, row in AGGREGATIONS.items() if not row.root]


@pytest.mark.parametrize("rule", RULES)
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


def test_a_rule_with_points_of_the_servers_own_is_one_line() -> None:
    line = r"rule = fltrust: expected sum, .*history-clipping: the server has no points of its own"
    with pytest.raises(ConfigError, match=line):
        pfl.RobustFedAvg("fltrust")
    assert "fltrust" not in RULES and len(RULES) == len(AGGREGATIONS) - 1


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


@pytest.mark.parametrize("rule", [name for name in RULES if AGGREGATIONS[name].rounds])
def test_one_attacker_leaves_rules_that_see_rounds_among_the_honest(rule: str) -> None:
    """They draw or remember, and never rest: on average no further than an honest optimum is."""
    honest = models(client_app(), rounds=20)[-1]
    farthest = max(np.linalg.norm(optimum(n) - honest) for n in range(CLIENTS) if n != 3)
    mod = pfl.attack_mod(**{**ATTACK, "strength": 1e6})
    ways = []
    for strategy in (pfl.RobustFedAvg(rule, **NONE), None):
        found = models(client_app(mod), strategy, rounds=20)[10:]
        ways.append(np.mean([np.linalg.norm(model - honest) for model in found]))
    assert ways[0] < farthest < ways[1] / 1e3


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


@pytest.mark.parametrize(
    ("rule", "options", "other"),
    [
        ("multi-krum", {"selected": 1}, {"selected": 2}),
        ("static-clipping", {"radius": 0.1}, {"radius": 0.2}),
        ("centred-clipping", {"radius": 0.1}, {"clippings": 1, "radius": 0.1}),
        ("history-clipping", {"radius": 0.1}, {"radius": 0.1, "beta": 0.5}),
        ("bucketing", {"then": "sum"}, {"size": 1}),
    ],
)
def test_options_reach_the_rule(rule: str, options: Any, other: Any) -> None:
    found = [
        models(client_app(), pfl.RobustFedAvg(rule, options=given, **NONE), rounds=3)[-1]
        for given in (options, other, None)
    ]
    assert not np.allclose(found[0], found[1]) and not np.allclose(found[0], found[2])


@pytest.mark.parametrize(("rule", "draws"), [("bucketing", True), ("history-clipping", False)])
def test_a_rule_draws_by_its_seed_and_by_the_round(rule: str, draws: bool) -> None:
    def once(seed: int) -> list[np.ndarray]:
        return models(client_app(), pfl.RobustFedAvg(rule, seed=seed, **NONE), rounds=3)

    assert np.array_equal(once(1), once(1))
    assert np.array_equal(once(1), once(2)) != draws


def test_what_is_remembered_of_clients_stays_theirs_as_others_come() -> None:
    """Three clients, then two others as well, then all: as if all had been known from the start."""
    draw = torch.Generator().manual_seed(1)
    rho, rows = torch.zeros(3).double(), torch.randn((4, 5, 3), generator=draw).double()
    known = HistoryClipping(AppSetup(seed=0, users=5), radius=0.5)
    state = known.init(rho)
    grown = Rounds(partial(HistoryClipping, radius=0.5), seed=0)
    # Of a node's id nothing is known; they get their numbers as they come.
    nodes = [701, 44, 9, 800, 5]
    for number, users in enumerate(([0, 1, 2], [1, 2], [1, 3, 4], [0, 1, 2, 3, 4])):
        there = rows[number, users]
        seen = Received(round=number + 1, users=torch.tensor(users), rows=there, rho=rho)
        wanted, state = known.update(state, seen)
        # The ids' order, in which rows come here, is none of the numbers'.
        turned = users if number in (0, 2) else users[::-1]
        found = grown.direction(number + 1, [nodes[u] for u in turned], rho, rows[number, turned])
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)
    assert float(wanted.norm()) > 0.1


@pytest.mark.parametrize("options", [{}, {"then": "median", "size": 3}], ids=str)
def test_deals_do_not_hang_on_nodes_ids(options: dict[str, Any]) -> None:
    """Flower draws ids anew in every run; clients come in twos and threes, some later."""
    draw = torch.Generator().manual_seed(1)
    rho, rows = torch.zeros(3).double(), torch.randn((4, 8, 3), generator=draw).double()
    # Rows may begin alike: what comes after decides.
    rows[0, :, 0] = torch.tensor([1.0, 0.0]).repeat(4)

    def once(nodes: list[int]) -> list[torch.Tensor]:
        rule = AppRule("bucketing", tolerance=None, options=options, mixing=False, seed=5)
        found = []
        for number, there in enumerate((range(5), range(8), range(2, 8), range(8)), start=1):
            order = sorted(there, key=lambda user: nodes[user])
            some = rows[number - 1, order]
            found.append(rule.at(number, [nodes[user] for user in order], rho)(some))
        return found

    first = once([701, 44, 9, 800, 5, 6, 30, 2])
    for nodes in ([1, 2, 3, 4, 5, 6, 7, 8], [80, 70, 60, 50, 40, 30, 20, 10]):
        assert all(torch.equal(*pair) for pair in zip(first, once(nodes), strict=True))
    spread = rows[3].std(dim=0).norm()
    assert float((first[3] / 8 - rows[3].mean(dim=0)).norm()) < 3 * spread


class _Seen(NamedTuple):
    rounds: torch.Tensor


class Later:
    """The mean, but 0 in the first round; ``gain`` times it."""

    def __init__(self, setup: Any, *, gain: float = 1.0) -> None:
        self.gain = gain

    def init(self, rho: torch.Tensor) -> _Seen:
        return _Seen(torch.zeros(1))

    def update(self, state: _Seen, received: Received) -> tuple[torch.Tensor, _Seen]:
        total = received.rows.sum(dim=0) * (self.gain if float(state.rounds) else 0.0)
        return total, _Seen(state.rounds + 1)


def test_a_class_of_ones_own_remembers_and_forgets_its_trial() -> None:
    plain = models(client_app(examples=lambda partition: 10), rounds=2)
    for rule in (Later, "tests.interop.test_robust:Later"):
        strategy = pfl.RobustFedAvg(rule, **NONE)
        found = models(client_app(), strategy, rounds=3)
        assert np.array_equal(found[0], np.ones(SIZE))
        np.testing.assert_allclose(found[1:], plain, rtol=1e-12)
    half = pfl.RobustFedAvg(Later, options={"gain": 0.5}, **NONE)
    assert not np.allclose(models(client_app(), half, rounds=2)[1], found[1])


def test_a_rule_of_ones_own_keeps_its_own_f_unless_it_is_told() -> None:
    def rule(rows: torch.Tensor, *, tolerance: int = 3) -> torch.Tensor:
        told.append(tolerance)
        return rows.sum(dim=0)

    for given, wanted in ((None, 3), (2, 2)):
        told: list[int] = []
        models(client_app(), pfl.RobustFedAvg(rule, given, **NONE), rounds=1)
        assert set(told) == {wanted}


def test_rows_are_mixed_before_a_rule_sees_them() -> None:
    """Mixed rows of which one is far: the mean of the five means of four."""
    mod = pfl.attack_mod("gaussian", partitions=[3], strength=1e4)
    far = models(client_app(mod), pfl.RobustFedAvg("sum", **NONE), rounds=1)[0]
    for rule in ("sum", "history-clipping"):
        strategy = pfl.RobustFedAvg(rule, 1, mixing=True, **NONE)
        found = models(client_app(mod), strategy, rounds=1)[0]
        assert np.linalg.norm(found) < np.linalg.norm(far) / 3


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (lambda rows: rows.sum(), "expected 4 finite numbers of rows of the shape"),
        (lambda rows: rows.sum(dim=0) * float("nan"), "expected 4 finite numbers"),
        (lambda rows: 5, "expected 4 finite numbers"),
        (lambda rows: rows.no, r"expected a rule that works \(.*AttributeError"),
    ],
)
def test_a_rule_that_does_not_work_is_one_line_before_anybody_is_asked(
    rule: Any, line: str
) -> None:
    asked: list[int] = []

    def examples(partition: int) -> int:
        asked.append(partition)
        return 10

    with pytest.raises(ConfigError, match=f"^rule = .*{line}") as error:
        play(client_app(examples=examples), pfl.RobustFedAvg(rule, **NONE), rounds=1)
    assert not asked and "\n" not in str(error.value)


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


def test_counters_take_their_median() -> None:
    values = [{"w": np.zeros(1), "n": np.array(n)} for n in (3, 4, 900)]
    made = robust_mean(values[0], values, lambda rho: lambda rows: rows.sum(dim=0))
    assert made["n"] == 4 and made["n"].dtype == np.int64


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"rule": "no"}, "^rule = no: expected sum, median"),
        ({"rule": 5}, "^rule = 5: expected sum, median"),
        ({"rule": "median", "tolerance": 1}, "tolerance = 1: expected none, median names no f"),
        ({"rule": "krum", "tolerance": -1}, "tolerance = -1: expected a whole number from 0"),
        ({"rule": "krum", "tolerance": 1.5}, "tolerance = 1.5"),
        ({"rule": "krum", "options": {"no": 1}}, r'^options = {"no": 1}: no: expected no option'),
        ({"rule": "krum", "options": {"radius": 1.0}}, '^options = {"radius": 1.0}: radius'),
        ({"rule": "krum", "options": {"f": object()}}, "^options = .*: expected JSON's values"),
        ({"rule": "krum", "options": 5}, "^options = 5: expected JSON's values"),
        ({"options": {"selected": 0}}, "^options = selected: 0: expected a whole number above 0"),
        ({"options": {"selected": 1.5}}, "^options = selected: 1.5: expected a whole number"),
        (
            {"rule": "static-clipping", "options": {"radius": -1}},
            "^options = radius: -1: expected a number above 0",
        ),
        ({"rule": "nomod:f"}, "^rule = nomod:f"),
        ({"rule": first_row, "tolerance": 1}, "^tolerance = 1: .* has no parameter tolerance"),
        ({"rule": "median", "mixing": 1}, "^mixing = 1: expected True or False"),
        ({"rule": "dnc", "seed": 1.5}, "^seed = 1.5: expected a whole number"),
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
    made = robust_mean(models_[0], models_, lambda rho: lambda rows: rule(rows, tolerance=1))
    assert abs(float(made["w"][0]) - base) < 0.04
