"""CGA against federated averaging: where it converges, at what rate, with which weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pfl_flower as pfl
from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.cga import CounterGradient
from pfl_flower.interop.updates import Stale, WeightedCounterGradient
from tests.interop import apps
from tests.interop.apps import CLIENTS, client_app, models

GOAL = 5.0
TARGET = {"weight": np.full((3, 1), GOAL), "bias": np.full(1, GOAL)}
EXAMPLES = sum(10 + partition for partition in range(CLIENTS))


def distances(attacker: dict[str, object], **app: object) -> list[float]:
    mod = pfl.attack_mod("cga", target=TARGET, **attacker)  # type: ignore[arg-type]
    found = models(client_app(mod, **app), rounds=100)  # type: ignore[arg-type]
    return [float(np.abs(model - GOAL).max()) for model in found]


@pytest.mark.parametrize(
    ("pull", "attacker"),
    [
        (0.2, {"partitions": [3], "weight": 13 / EXAMPLES}),
        (0.2, {"partitions": [3], "weight": 26 / EXAMPLES}),
        (0.2, {"partitions": [3]}),
        (0.5, {"partitions": [3]}),
        (1.0, {"partitions": [3], "weight": 26 / EXAMPLES}),
        (1.0, {"partitions": [3]}),
        (0.5, {"partitions": [3], "num_examples": 10**6}),
        (0.5, {"partitions": [3], "num_examples": 1}),
        (0.5, {"partitions": [3, 1]}),
        (0.5, {"share": 0.4}),
    ],
)
def test_rho_reaches_the_target(
    monkeypatch: pytest.MonkeyPatch, pull: float, attacker: dict[str, object]
) -> None:
    monkeypatch.setattr(apps, "PULL", pull)
    assert distances(attacker)[-1] < 1e-9


def test_the_true_weight_diverges_where_clients_go_more_than_half_of_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(apps, "PULL", 1.0)
    assert distances({"partitions": [3], "weight": 13 / EXAMPLES})[20] > 100


@pytest.mark.parametrize("h", [0.1, 0.45, 0.55, 0.9, 1.0])
@pytest.mark.parametrize("kappa", [0.25, 0.5, 0.66, 0.9, 1.0, 1.3])
def test_the_rate_is_the_largest_root(h: float, kappa: float) -> None:
    """One attacker in the frame ``rho <- rho - h (rho - c) - kappa w g`` of the docstring."""
    assumed, rho, report = 0.3, torch.ones(2).double(), torch.zeros(2).double()
    attack = WeightedCounterGradient(target=torch.zeros(2).double(), weight=assumed)
    state, ways = attack.init(rho), []
    for number in range(1, 61):
        seen = Observation(round=number, rho=rho, eta=1.0, eta_sum=number - 1.0, accepted=report)
        report, state = attack.update(state, seen)
        rho = rho - h * (rho - 3.0) - kappa * assumed * report
        ways.append(float(rho.abs().max()))
    roots = np.roots([1, -(2 - h - 2 * kappa), 1 - h - kappa])
    rate = max(abs(roots))
    assert (rate < 1) == (kappa < (4 - 2 * h) / 3 and h + kappa < 2)
    # Over 40 rounds, so that a turning pair of roots averages out; rounding ends at 1e-13.
    measured = (max(ways[50:60]) / max(ways[10:20])) ** (1 / 40)
    if rate > 0.6:
        assert measured == pytest.approx(rate, abs=0.02)
    else:
        assert ways[-1] < 1e-8


def test_equation_5_is_the_case_of_weight_1() -> None:
    """The same reports as the paper's attack at eta = 1, rounds missed or not."""
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = WeightedCounterGradient(target=torch.zeros(3).double(), weight=1.0)
    paper = CounterGradient(target=torch.zeros(3).double())
    one, other = ours.init(rows[0]), paper.init(rows[0])
    report = torch.zeros(3).double()
    for number, rho in zip([1, 2, 3, 7, 8], rows, strict=True):
        seen = Observation(round=number, rho=rho, eta=1.0, eta_sum=number - 1.0, accepted=report)
        found, one = ours.update(one, seen)
        report, other = paper.update(other, seen)
        assert torch.equal(found, report)


def test_sampled_clients_and_unknown_weights_come_half_of_the_way() -> None:
    """Who else is asked changes from round to round: the others' pull is never what it was."""
    import random

    from flwr.serverapp.strategy import FedAvg

    random.seed(1)
    mod = pfl.attack_mod("cga", target=TARGET, partitions=[3])
    sampled = FedAvg(fraction_train=0.6, fraction_evaluate=0.0)
    found = models(client_app(mod), sampled, rounds=100)
    alone = models(client_app(), rounds=10)[-1]
    way = np.mean([np.abs(model - GOAL).max() for model in found[50:]])
    assert 0.2 < way / np.abs(alone - GOAL).max() < 0.8


def test_a_stale_client_returns_the_model_of_so_many_rounds_before() -> None:
    attack = Stale(delay=2)
    rho = torch.zeros(1).double()
    state, sent = attack.init(rho), []
    for number in range(1, 6):
        seen = Observation(
            round=number,
            rho=rho,
            eta=1.0,
            eta_sum=0.0,
            accepted=rho,
            surrogates=torch.full((1, 1), -float(number)).double(),
        )
        report, state = attack.update(state, seen)
        sent.append(float((rho - report)[0]))
    assert sent == [1.0, 1.0, 1.0, 2.0, 3.0]
