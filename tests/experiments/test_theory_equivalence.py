from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.studies.study import Setting, Study
from experiments.theory import equivalence, model_attack, reduction, scenario
from experiments.theory.attacks_compared import counter_gradient, few_honest_users
from experiments.theory.honest_users import draw_scenario
from experiments.theory.model_attack import SingleSteps
from experiments.theory.scenario import Scenario, settled
from pfl_flower.objective.regularizers import L2
from tests.support.studies import run_quick, seed_result

STUDIES = [equivalence.STUDY, reduction.STUDY, model_attack.STUDY]
MISSES = {
    "thm1-equivalence": [
        *("target", "model", "data", "from data", "sequence"),
        *("outside limit", "outside data"),
    ],
    "lemma1-reduction": ["rho", "local models", "rival"],
    "prop3-model-attack": ["gradient, cga", "gradient, responses", "equilibrium", "gap, cga"],
}
"""Metrics that an idle user must miss in every case, not only in the worst."""


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_study_passes(study: Study, tmp_path: Path) -> None:
    summary = run_quick(study, tmp_path)
    assert summary["passed"], [check for check in summary["checks"] if not check["passed"]]
    folder = tmp_path / study.name
    assert (folder / f"{study.name}.png").stat().st_size > 10_000
    assert (folder / f"{study.name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_an_idle_user_fails_every_check_in_every_case(study: Study, tmp_path: Path) -> None:
    summary = run_quick(study, tmp_path, control=True)
    assert summary["passed"] is True
    failed = {check["name"] for check in summary["checks"] if not check["passed"]}
    assert failed == set(study.must_fail)
    metrics = seed_result(study, tmp_path, control=True)["metrics"]
    for what in MISSES[study.name]:
        cases = {key: value for key, value in metrics.items() if key.startswith(what)}
        assert cases
        assert min(cases.values()) > 1e-4, cases


def test_single_steps_are_those_of_torch_adam() -> None:
    scenario = few_honest_users(Setting(seed=3), "logistic", "squared-l2")
    users = scenario.population(kind=SingleSteps)
    theta = torch.zeros((3, 4), dtype=torch.float64)
    parameter = torch.nn.Parameter(theta.clone())
    adam = torch.optim.Adam([parameter], lr=0.02)
    for round in range(300):
        rho = torch.full((4,), 0.1 * round, dtype=torch.float64)
        theta = users.solve(rho, theta).theta
        adam.zero_grad()
        coupling = scenario.regularizer.value(rho, parameter)
        (users.value(parameter) + coupling).sum().backward()
        adam.param_groups[0]["lr"] = max(0.02 * 0.99**round, 0.005)
        adam.step()
    torch.testing.assert_close(theta, parameter.detach(), rtol=1e-10, atol=1e-12)


def test_smooth_l2_reaches_the_target_or_not_as_chosen() -> None:
    for share, reached in ((2.0, True), (0.05, False)):
        scenario = few_honest_users(Setting(seed=2), "least-squares", "smooth-l2", share)
        squared = few_honest_users(Setting(seed=2), "least-squares", "squared-l2")
        assert torch.equal(scenario.target, squared.target)
        miss = torch.linalg.vector_norm(counter_gradient(scenario).limit - scenario.target)
        assert (float(miss) < 1e-9) == reached


def coupled_by_l2(seed: int) -> Scenario:
    return draw_scenario("logistic", L2(lam=4.0), seed=seed, users=3, points=20, dim=4)


def test_a_model_within_reach_of_l2_holds_rho_at_itself() -> None:
    """At the honest optimum the honest sum is 0; a model near it is where rho* sits exactly."""
    scenario = coupled_by_l2(seed=2)
    population, centre = scenario.honest, scenario.honest_optimum
    near = centre + 0.01
    rho, theta = reduction.held(population, near)
    assert torch.equal(rho, near)
    value = reduction.modified_loss(population, rho, theta, near)
    draws = torch.randn((50, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for move in 1e-3 * draws:
        best = population.solve(rho + move, theta).theta
        assert reduction.modified_loss(population, rho + move, best, near) > value


def test_a_model_that_newton_would_stick_to_does_not_hold_rho() -> None:
    """Seed 2: from 0 Newton's method lands on theta_spade, which is not the minimum."""
    scenario = coupled_by_l2(seed=2)
    population, centre = scenario.honest, scenario.honest_optimum
    local = scenario.settle(reduction.arbitrary_data(scenario, 12, 2.0)).theta[-1]
    model = local + 0.3 * (centre - local)
    rho, _ = reduction.held(population, model)
    assert not torch.equal(rho, model)
    total = population.report(rho, population.solve(rho, rho.repeat(3, 1)).theta).sum(dim=0)
    pull = scenario.regularizer.grad_rho(rho, model)
    assert float(torch.linalg.vector_norm(total + pull)) < 1e-8


@pytest.mark.parametrize("residuals", [(1e-7, 0.0), (0.0, 1e-7), (math.nan, 0.0), (0.0, math.nan)])
def test_settled_refuses_large_residuals(
    residuals: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = coupled_by_l2(seed=1).honest
    found = settled(honest)
    worse = replace(found, residual=residuals[0], local_residual=residuals[1])
    monkeypatch.setattr(scenario, "equilibrium", lambda *_, **__: worse)
    with pytest.raises(RuntimeError, match="no equilibrium"):
        settled(honest)
