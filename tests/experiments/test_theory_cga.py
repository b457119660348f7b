from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.studies.study import Study
from experiments.theory import convergence, partial_honesty, single_point
from experiments.theory.convergence_rates import (
    ALPHA,
    curvature,
    forecast,
    honest_hessian,
    proven,
    rate,
)
from experiments.theory.honest_users import draw_scenario
from experiments.theory.scenario import settled
from experiments.theory.single_point import draw_instance, normal_equations, points_tried
from experiments.theory.uncoordinated import fled
from pfl_flower.attacks.equivalence import honest_sum
from pfl_flower.objective.regularizers import SquaredL2
from tests.support.studies import run_quick, seed_result

STUDIES = [convergence.STUDY, single_point.STUDY, partial_honesty.STUDY]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_study_passes(study: Study, tmp_path: Path) -> None:
    summary = run_quick(study, tmp_path)
    assert summary["passed"], [check for check in summary["checks"] if not check["passed"]]
    folder = tmp_path / study.name
    assert (folder / f"{study.name}.png").stat().st_size > 10_000
    assert (folder / f"{study.name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_an_idle_user_fails_every_check(study: Study, tmp_path: Path) -> None:
    summary = run_quick(study, tmp_path, control=True)
    assert summary["passed"] is True
    failed = {check["name"] for check in summary["checks"] if not check["passed"]}
    assert failed == set(study.must_fail)
    found = seed_result(study, tmp_path, control=True)
    for case in found.get("cases", []):
        assert case["found"]["target"] > 0.1
        assert case["found"]["equation 168"] > 0.1
    for row in found.get("rows", []):
        assert row["theorem"] > 0.1


@pytest.mark.parametrize("loss", convergence.LOSSES)
def test_the_hessian_is_that_of_the_honest_envelope(loss: str) -> None:
    scenario = draw_scenario(loss, SquaredL2(lam=2.0), seed=7, users=3, points=12, nu=0.1)
    rows = [
        honest_sum(scenario.honest, scenario.target + step).value
        - honest_sum(scenario.honest, scenario.target - step).value
        for step in 1e-5 * torch.eye(scenario.dim, dtype=torch.float64)
    ]
    measured = torch.stack(rows).numpy() / 2e-5
    hessian = honest_hessian(scenario)
    assert np.allclose(hessian, measured, rtol=1e-6, atol=1e-7)
    assert curvature(hessian) < scenario.smoothness()


def test_rates_are_the_larger_roots() -> None:
    for step in (1e-3, 0.1, 1 / 3, 0.5, 2.0, 8.0):
        alone = np.roots([1, step, -step])
        apart = np.roots([1, 2 + step, -1 - step])
        assert rate(step) == pytest.approx(abs(alone).max())
        assert fled(step) == pytest.approx(abs(apart).max())
        assert fled(step) > 1 + 2**0.5
        assert (rate(step) < 1) == (step < 0.5)


def test_the_forecast_ends_at_the_rate() -> None:
    errors = np.array([[1.0, -0.5], [0.3, 0.2]])
    steps = forecast(errors, np.diag([0.1, 0.3]), 120)
    assert steps[-1] / steps[-2] == pytest.approx(rate(0.3), rel=1e-6)
    now = -np.diag([0.1, 0.3]) @ (errors[1] - errors[0])
    assert steps[0] == pytest.approx(np.linalg.norm(now - errors[1]))


@pytest.mark.parametrize("first", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.01)])
def test_the_proofs_bound_is_counted_from_the_right_round(first: tuple[float, float]) -> None:
    """The worst steps that the recursion allows from round 3 on stay below it, without slack."""
    u = list(first)
    for _ in range(60):
        u.append((u[-1] + u[-2]) / 3)
    steps = np.array(u)
    bound = proven(steps)
    sums = steps[1:] + steps[:-1]
    assert (sums <= bound[1:] * (1 + 1e-12)).all()
    assert bound[2] == pytest.approx(max(sums[0], sums[1]))
    assert bound[3] / bound[2] == pytest.approx(ALPHA)


@pytest.mark.parametrize("index", [4, 7])
def test_the_normal_equations_agree_with_newtons_method(index: int) -> None:
    scenario = draw_instance(2, index)
    for name, point in points_tried(scenario).items():
        population = scenario.population(*([] if point is None else [point]))
        found = settled(population, start=scenario.target).rho
        assert torch.allclose(normal_equations(scenario, point), found, rtol=0, atol=1e-7), name
