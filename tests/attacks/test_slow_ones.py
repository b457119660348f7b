"""Attacks that no library has beside slow ones: bisection by SciPy, loops, and brute force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pfl_flower.aggregation.rules import krum, trimmed_mean
from pfl_flower.attacks.among_honest import FangTrimmedMean, Mimic, MinSum
from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.fitted import FangKrum
from pfl_flower.attacks.untargeted import MinMax, Untargeted
from pfl_flower.support.seeding import generator
from tests.support import reference_attacks

SEEDS, SHAPES = range(8), ((4, 2), (9, 6), (15, 3))
CASES = [pytest.param(seed, shape, id=f"{shape} {seed}") for seed in SEEDS for shape in SHAPES]


def sample(seed: int, shape: tuple[int, int]) -> Tensor:
    draw = generator(seed, "slow attacks", *shape)
    return 0.5 + torch.randn(shape, generator=draw, dtype=torch.float64)


def seen(rows: Tensor, round: int = 1) -> Observation:
    zero = torch.zeros_like(rows[0])
    return Observation(round=round, rho=zero, eta=1.0, eta_sum=0.0, accepted=zero, honest=rows)


def said(attack: Untargeted, rows: Tensor) -> Tensor:
    return attack.update(attack.init(rows[0]), seen(rows))[0]


SLOW: dict[str, tuple[Untargeted, Callable[[np.ndarray], np.ndarray]]] = {
    "min-max": (MinMax(datasets=()), reference_attacks.min_max),
    "min-sum": (MinSum(datasets=()), reference_attacks.min_sum),
}


@pytest.mark.parametrize(("seed", "shape"), CASES)
@pytest.mark.parametrize("name", SLOW)
def test_reports_are_those_of_a_bisection(name: str, seed: int, shape: tuple[int, int]) -> None:
    attack, slow = SLOW[name]
    rows = sample(seed, shape)
    np.testing.assert_allclose(said(attack, rows).numpy(), slow(rows.numpy()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_fangs_report_to_krum_is_that_of_loops(seed: int, k: int) -> None:
    rows = sample(seed, (9, 6)) - 0.4
    report = said(FangKrum(datasets=(), copies=k), rows)
    np.testing.assert_allclose(report.numpy(), reference_attacks.fang_krum(rows.numpy(), k))
    chosen = krum(torch.cat([rows, report.expand(k, -1)]), tolerance=k) / (len(rows) + k)
    assert float((chosen - rows.mean(dim=0)) @ rows.mean(dim=0).sign()) < 0


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_sent_alike_leads_the_trimmed_mean_farther_than_fangs_numbers(
    seed: int, k: int
) -> None:
    """In each coordinate, against all of 401 values from far below to far above the honest ones."""
    rows = sample(seed, (9, 6))
    honest = rows.mean(dim=0)
    sent = [said(FangTrimmedMean(datasets=(), seed=1, user=i), rows) for i in range(k)]

    def led(some: Tensor) -> Tensor:
        """How far each coordinate is led from where the honest ones pull."""
        together = torch.cat([rows, some])
        return -honest.sign() * (trimmed_mean(together, tolerance=k) / len(together) - honest)

    found = led(torch.stack(sent))
    values = torch.linspace(-20, 20, 401, dtype=torch.float64)
    best = torch.stack([led(value.expand(k, 6)) for value in values]).amax(dim=0)
    assert bool((found >= best - 1e-12).all())
    assert bool((found > 0).all())


@pytest.mark.parametrize("seed", SEEDS)
def test_mimic_repeats_whom_loops_would(seed: int) -> None:
    attack = Mimic(datasets=(), seed=seed)
    state = attack.init(torch.zeros(6, dtype=torch.float64))
    slow = reference_attacks.Mimic(state.direction.numpy())
    for round in range(1, 9):
        rows = sample(seed, (9, 6)) + 0.3 * sample(100 * seed + round, (9, 6))
        report, state = attack.update(state, seen(rows, round))
        expected = slow.choose(rows.numpy())
        assert torch.equal(report, rows[expected])
        np.testing.assert_allclose(state.direction.numpy(), slow.direction, rtol=1e-9, atol=1e-9)
