"""Users who estimate means: closed forms against the library, and predictions that can fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.heterogeneity.interpolation import STUDY, USUAL, bounded_errors, measure
from experiments.heterogeneity.means import (
    RESPONSES,
    Means,
    World,
    best_weight,
    bounded_rest,
    error,
    interpolated,
    ruled_rest,
)
from experiments.heterogeneity.means_predicted import Predicted
from experiments.studies.study import Setting
from pfl_flower.objective.losses import LOSSES
from pfl_flower.objective.models import Linear
from pfl_flower.objective.regularizers import L2, SmoothL2, SquaredL2
from pfl_flower.objective.user_data import UserData
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.solvers.population import Population

POINTS = torch.tensor([[3.0, 5.0, 7.0], [-1.0, 0.0, 1.5], [9.0, 9.5, 4.0]], dtype=torch.float64)
KINDS: dict[str, Any] = {"squared l2": SquaredL2, "l2": L2, "smooth l2": SmoothL2}


def population(name: str, kappa: float) -> Population:
    """The library's users of means: one constant feature, half squared errors."""
    users = [UserData(torch.ones((3, 1), dtype=torch.float64), labels) for labels in POINTS]
    return Population(
        users,
        model=Linear(1, 1),
        loss=LOSSES["least-squares"](),
        regularizer=KINDS[name](lam=3 * kappa),
        nu=0.0,
        tolerance=1e-11,
    )


@pytest.mark.parametrize("kappa", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("name", KINDS)
def test_responses_are_the_librarys(name: str, kappa: float) -> None:
    average = POINTS.mean(dim=1).numpy()
    for rho in (-4.0, 2.0, 30.0):
        users = population(name, kappa)
        at = torch.tensor([rho], dtype=torch.float64)
        expected = users.solve(at, at.repeat(3, 1)).theta[:, 0].numpy()
        if name == "squared l2":
            weight = 2 * kappa / (1 + 2 * kappa)
            found = interpolated(Means(average, average), rho, weight)
        else:
            found = RESPONSES[name](average, rho, kappa)
        np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("name", RESPONSES)
def test_rests_are_the_librarys(name: str) -> None:
    average = POINTS.mean(dim=1).numpy()
    pull = torch.tensor([-3 * 1.5], dtype=torch.float64)
    expected = equilibrium(population(name, 1.5), attack_gradient=pull).rho
    assert bounded_rest(RESPONSES[name], average, 1.5, 1) == pytest.approx(
        float(expected), abs=1e-8
    )
    assert bounded_rest(RESPONSES[name], average, 1.5, 3) == float("inf")


def test_rules_rest_at_themselves_and_liars_stand_above() -> None:
    average = np.array([1.0, 2.0, 4.0, 8.0])
    assert ruled_rest("median", average, 0, 1) == 3.0
    assert ruled_rest("median", average, 1, 1) == 4.0
    assert ruled_rest("trimmed mean", average, 0, 1) == 3.0
    assert ruled_rest("trimmed mean", average, 1, 1) == pytest.approx(14 / 3)


def test_the_best_weight_is_where_the_error_is_least() -> None:
    means = Means.of(World(users=50, strategic=10), 4)
    assert len(means.truth) == 40
    best = best_weight(means, 1.3)
    least = error(means, interpolated(means, 1.3, best))
    for other in (best - 0.01, best + 0.01):
        assert error(means, interpolated(means, 1.3, other)) > least


@pytest.mark.parametrize("lies", [0, 100])
def test_theory_is_what_very_many_users_come_to(lies: int) -> None:
    world = replace(USUAL, users=120_000, strategic=200 * lies)
    means, theory = Means.of(world, 1), Predicted(world)
    for rule in ("median", "trimmed mean"):
        rho = ruled_rest(rule, means.average, world.strategic, 20_000)
        bias = theory.bias(rule, 20_000)
        assert rho == pytest.approx(bias, abs=0.05)
        assert best_weight(means, rho) == pytest.approx(theory.weight(bias), abs=0.01)
    for name, response in RESPONSES.items():
        rest, expected = theory.bounded(response, 3.0)
        rho = bounded_rest(response, means.average, 3.0, world.strategic)
        assert rho == pytest.approx(rest, abs=0.05), name
        assert error(means, response(means.average, rho, 3.0)) == pytest.approx(expected, rel=0.02)


def test_the_error_is_never_below_what_an_average_tells() -> None:
    world = replace(USUAL, strategic=0)
    assert Predicted(world).least == pytest.approx(4 * 11.25 / 15.25)
    assert Predicted(world).interpolated(11.25 / 15.25, 0.0) == pytest.approx(4 * 11.25 / 15.25)
    assert bounded_errors(Means.of(world, 1), "l2", 0).min() > 2.5


@pytest.fixture(scope="module")
def finals() -> list[dict[str, float]]:
    return [measure(Setting(seed=seed))["metrics"] for seed in (1, 2)]


def test_claims_and_statements_can_fail(finals: list[dict[str, float]]) -> None:
    for claim in STUDY.always:
        assert not claim.check([{**final, str(claim.metric): 9.0} for final in finals]).passed
    assert {one.standing for one in STUDY.compare(finals)} == {"reproduced"}
    wrong = {"best level, sigma_h": 0.1, "best level, f": 0.1, "best level, sigma": -0.1}
    changed = {f"{key}: last minus first": value for key, value in wrong.items()}
    other = [one.standing for one in STUDY.compare([{**final, **changed} for final in finals])]
    assert other.count("contradicted") == 3
    full = {key: 0.0 for key in finals[0] if key.endswith("full collaboration")}
    other = [one.standing for one in STUDY.compare([{**final, **full} for final in finals])]
    assert other.count("contradicted") == 2


def test_the_picture(tmp_path: Path) -> None:
    STUDY.draw([measure(Setting(seed=seed)) for seed in (1, 2)], tmp_path)
    assert (tmp_path / "interpolation.png").stat().st_size > 20_000
