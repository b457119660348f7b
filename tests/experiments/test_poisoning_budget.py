from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.poisoning_budget import short_runs, study
from experiments.poisoning_budget.scenarios import binary_scenario
from experiments.poisoning_budget.short_runs import rho_after
from experiments.poisoning_budget.trials import METHODS, Trial, held
from experiments.studies.study import Study
from experiments.theory import alpha_growth
from experiments.theory.fast_equilibrium import settle
from experiments.theory.honest_users import draw_scenario
from experiments.theory.label_weight import WeightSearch
from experiments.theory.scenario import Scenario
from pfl_flower.attacks.poisoning.repeated import least_weight
from pfl_flower.objective.losses import Logistic
from pfl_flower.objective.regularizers import SquaredL2
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.attack_plans import fabricate, plan
from pfl_flower.run.problem import build_problem
from pfl_flower.solvers.equilibrium import equilibrium
from tests.support.runs import configure, play, trajectory
from tests.support.studies import run_quick

STUDIES = [alpha_growth.STUDY, study.STUDY]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_study_passes(study: Study, tmp_path: Path) -> None:
    summary = run_quick(study, tmp_path)
    assert summary["passed"], [check for check in summary["checks"] if not check["passed"]]
    assert (tmp_path / study.name / f"{study.name}.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_control_fails_every_success_check(study: Study, tmp_path: Path) -> None:
    summary = run_quick(study, tmp_path, control=True)
    passed = [check["name"] for check in summary["checks"] if check["passed"]]
    assert summary["passed"] and not set(passed) & set(study.must_fail)


def test_joint_newton_finds_the_equilibrium() -> None:
    scenario = draw_scenario("logistic", SquaredL2(lam=1.0), seed=7, users=4, points=15, dim=3)
    first = scenario.users[0]
    heavy = UserData(5 * first.features[:4], -first.labels[:4], torch.ones(4) * 30)
    found = settle(scenario, (*scenario.users, heavy), torch.zeros(6, 3, dtype=torch.float64))
    exact = equilibrium(scenario.population(heavy))
    assert exact.converged
    torch.testing.assert_close(found[0], exact.rho, rtol=0, atol=1e-8)
    torch.testing.assert_close(found[1:], exact.theta, rtol=0, atol=1e-8)


def test_least_weight_is_least() -> None:
    coupling = SquaredL2(lam=1.0)
    scenario = draw_scenario("logistic", coupling, seed=3, users=2, points=40, dim=5, nu=0.01)
    search = WeightSearch.of(scenario, 0.01)
    for criterion in range(3):
        weight = search.least(criterion)
        assert weight is not None
        assert search.exact(0.98 * weight)[criterion] > 1 > search.exact(1.02 * weight)[criterion]
    assert replace(search, unit=1e-12, seen={}).least(0) is None


def test_the_transient_is_the_flower_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(
        attack="data",
        poisoning="repeated",
        initialization="attack-model",
        local_solver="adam",
        update_order="simultaneous",
        rounds=12,
    )
    problem = build_problem(config)
    points = problem.points
    scenario = Scenario(
        name="small",
        loss="logistic",
        users=tuple(problem.source.draw(user, points[user], config.seed) for user in range(4)),
        regularizer=SquaredL2(lam=config.lam),
        nu=config.nu,
        seed=config.seed,
    )
    assert isinstance(problem.loss, Logistic)
    made = plan(problem, 4)
    monkeypatch.setattr(short_runs, "START_NOISE", 0.0)
    expected = trajectory(play(config))[-1]
    poison = fabricate(problem, 4)
    found = rho_after(config.rounds, scenario, poison, attack_model=made.attack_model)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert float(torch.linalg.vector_norm(found)) > 0.1


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial.of(binary_scenario(2, idle=False))


@pytest.mark.parametrize("method", ["matching", "repeated"])
def test_exact_data_hold_rho_part_of_the_way(trial: Trial, method: str) -> None:
    aim, data = METHODS[method](trial, 0.3)
    rho, residual = trial.settle(data)
    assert residual <= 1e-8 and data.feasible
    assert trial.settled(rho) == pytest.approx(0.3, abs=1e-7)
    torch.testing.assert_close(rho, held(aim, 1.0), rtol=0, atol=1e-7)
    assert least_weight(aim) * (1 - 1e-9) <= data.total_weight < least_weight(trial.goal)
    # Nine tenths of the labels are too few, and hold rho elsewhere.
    fewer, _ = trial.settle(replace(data, weights=0.9 * data.weights))
    assert float(torch.linalg.vector_norm(fewer - rho)) > 1e-2
