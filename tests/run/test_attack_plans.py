"""Model attacks and data poisoning as a run configures them, and the two yardsticks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.honest import HonestClient
from clients.node import node_clients
from clients.poisoned import PoisonedClient
from pfl_flower import client_app, server_app
from pfl_flower.attacks.equivalence import honest_sum
from pfl_flower.attacks.model import ModelAttackState
from pfl_flower.attacks.poisoning.aim import PoisonedData
from pfl_flower.attacks.poisoning.repeated import repeated
from pfl_flower.attacks.setup import AttackSetup
from pfl_flower.objective.table import REGULARIZERS
from pfl_flower.run.at_equilibrium import attacked_equilibrium
from pfl_flower.run.attack_plans import fabricate, honest_users, plan, reach
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import build_problem
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.support.errors import ConfigError
from pfl_flower.transport.inprocess import run_in_process
from tests.support.runs import configure, play, trajectory

REACHED = 1e-7


def run(folder: Path, **changes: Any) -> dict[str, float]:
    """Run to the end in this process and return what the summary says."""
    changes = {"equilibrium": True, "output_dir": str(folder), "name": "run", **changes}
    config = configure(**changes)
    run_in_process(server_app.app, client_app.app, nodes=2, run_config=config.flat())
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return {name: metric["values"][0] for name, metric in summary["metrics"].items()}


@pytest.mark.parametrize("dataset", ["synthetic-linear", "synthetic-logistic"])
@pytest.mark.parametrize("attack", ["cga", "model", "data"])
def test_the_three_attacks_hold_the_target_of_squared_l2(
    dataset: str, attack: str, tmp_path: Path
) -> None:
    # The slowest, data of synthetic-logistic, gains a digit in eleven rounds: 5e-8 after 80.
    found = run(tmp_path, dataset=dataset, attack=attack, rounds=100)
    assert found["distance_to_target"] < REACHED
    assert found["equilibrium_distance_to_target"] < REACHED
    assert found["equilibrium_gap"] < REACHED
    assert found["equilibrium_converged"] == 1
    assert ("poisoned_points" in found) == (attack == "data")


@pytest.mark.parametrize("dataset", ["synthetic-linear", "synthetic-logistic"])
@pytest.mark.parametrize("regularizer", ["l2", "smooth-l2"])
def test_the_three_attacks_share_a_limit_where_the_target_is_out_of_reach(
    dataset: str, regularizer: str
) -> None:
    """Lemma 15: a model of smooth l2 comes within its epsilon of the gradient attack's limit."""
    limits = []
    for attack in ("cga", "model", "data"):
        problem = build_problem(configure(dataset=dataset, regularizer=regularizer, attack=attack))
        found = attacked_equilibrium(problem)
        assert found.converged
        assert float(torch.linalg.vector_norm(found.rho - problem.target)) > 1
        limits.append(found.rho)
    gradient, model, data = limits
    honest = equilibrium(problem.population((0, 1, 2, 3))).rho
    assert float(torch.linalg.vector_norm(honest - gradient)) > 1e-3
    assert torch.equal(gradient, reach(problem, 4).rho)
    # Epsilon over the curvature, and the tolerance of two equilibria.
    assert torch.allclose(model, gradient, rtol=0, atol=5e-6)
    assert torch.allclose(data, model, rtol=0, atol=1e-8)


@pytest.mark.parametrize("strategic", ["4", "3,4"])
@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("dataset", ["synthetic-linear", "synthetic-logistic"])
def test_data_are_made_for_where_the_honest_sum_cancels_their_gradient(
    dataset: str, regularizer: str, strategic: str
) -> None:
    """Of Lemma 15's model that is where it holds rho itself, not the limit that it comes near."""
    problem = build_problem(
        configure(dataset=dataset, regularizer=regularizer, strategic_users=strategic)
    )
    made, limit = plan(problem, 4), reach(problem, 4)
    others = honest_sum(problem.population(honest_users(problem)), made.rho)
    pull = problem.config.allies(4) * made.gradient
    # The equilibrium's tolerance is 1e-9, a local solve's 1e-10; the limit misses by 1e-6.
    assert float(torch.linalg.vector_norm(others.value + pull)) <= 3e-9
    moved = float(torch.linalg.vector_norm(made.rho - limit.rho))
    assert (moved > 1e-7) == (regularizer == "smooth-l2")


class Idle:
    """The no-op attack: reports nothing."""

    def __init__(self, setup: AttackSetup) -> None:
        del setup

    def init(self, rho: Tensor) -> ModelAttackState:
        return ModelAttackState()

    def update(self, state: ModelAttackState, seen: Any) -> tuple[Tensor, ModelAttackState]:
        return torch.zeros_like(seen.rho), state


@pytest.mark.parametrize("dataset", ["synthetic-linear", "synthetic-logistic"])
def test_a_no_op_attack_reaches_nothing(dataset: str, tmp_path: Path) -> None:
    found = run(tmp_path, dataset=dataset, attack=f"{__name__}:Idle", rounds=80, equilibrium=False)
    assert found["distance_to_target"] > 1
    nobody = run(tmp_path / "nobody", dataset=dataset, strategic_users="none")
    assert nobody["equilibrium_distance_to_target"] > 1


def test_a_model_attack_begins_where_a_cga_run_ended(tmp_path: Path) -> None:
    """The last gradient and the exact responses are two sources of one theta_spade."""
    run(tmp_path, attack="cga", rounds=60, equilibrium=False)
    made = {
        source: plan(build_problem(configure(attack="model", attack_model=source)), 4)
        for source in ("exact", str(tmp_path / "run"))
    }
    exact, last = made.values()
    assert torch.allclose(exact.attack_model, last.attack_model, atol=1e-7)
    found = run(tmp_path, attack="model", attack_model=str(tmp_path / "run"), name="second")
    assert found
    second = json.loads((tmp_path / "second" / "summary.json").read_text())["metrics"]
    assert second["equilibrium_distance_to_target"]["values"][0] < 1e-6


LIMITS = {
    None: "expected exact, or the folder of a CGA run with a limit.npz (FileNotFoundError)",
    "text": "expected exact, or the folder of a CGA run with a limit.npz (",
    "other": "expected a run of 6 parameters, and it has 3",
    "of 0.1": "expected a limit.npz of version 2, and it is of version 1: run that CGA run again",
}


@pytest.mark.parametrize("content", LIMITS)
def test_a_folder_without_a_limit_is_one_line(content: str | None, tmp_path: Path) -> None:
    if content == "text":
        (tmp_path / "limit.npz").write_text("not an archive")
    if content == "other":
        np.savez(
            tmp_path / "limit.npz",
            version=2,
            rho=np.zeros(3),
            gradient=np.zeros(3),
            users=[4],
            rounds=[1],
        )
    if content == "of 0.1":
        np.savez(tmp_path / "limit.npz", rho=np.zeros(6), gradient=np.zeros(6))
    problem = build_problem(configure(attack="model", attack_model=str(tmp_path)))
    with pytest.raises(ConfigError) as caught:
        plan(problem, 4)
    assert f"attack-model = {tmp_path}: {LIMITS[content]}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_poisoned_client_is_the_honest_code_on_other_data() -> None:
    config = configure(attack="data", poisoning="repeated")
    (client,) = node_clients(build_problem(config), (4,), "auto", None)  # type: ignore[arg-type]
    assert type(client) is PoisonedClient
    assert PoisonedClient._answer is HonestClient._answer
    assert PoisonedClient._memory is HonestClient._memory
    (lonely,) = node_clients(build_problem(config), (2,), "strategic", None)  # type: ignore[arg-type]
    assert type(lonely) is PoisonedClient


POISONS: dict[str, dict[str, Any]] = {
    "single-point": {"dataset": "synthetic-linear"},
    "sampling": {"poisoning_points": 300, "poisoning_queries": "uniform"},
    "indifference": {"poisoning_points": 300, "poisoning_weight": 50.0, "poisoning_box": True},
    "matching": {"poisoning_integer": True},
    "repeated": {},
    f"{__name__}:own_poison": {},
}


def own_poison(aim: Any, recipe: Any) -> PoisonedData:
    """A method of the user's own."""
    assert recipe.user == 4
    return repeated(aim)


@pytest.mark.parametrize("method", POISONS)
def test_every_poisoning_runs_and_says_what_it_cost(method: str, tmp_path: Path) -> None:
    found = run(tmp_path, attack="data", poisoning=method, rounds=3, **POISONS[method])
    assert found["poisoned_points"] >= 1
    assert found["poisoned_labels"] >= 0.1
    assert found["poisoned_residual"] >= 0
    assert found["equilibrium_converged"] == 1
    exact = method not in ("sampling", "indifference")
    assert (found["equilibrium_distance_to_target"] < REACHED) == exact


def test_a_run_does_not_depend_on_the_nodes_that_carry_its_poison() -> None:
    config = configure(attack="data", strategic_users="3,4", rounds=4)
    one, five = (trajectory(play(config, nodes=nodes)) for nodes in (1, 5))
    assert torch.allclose(one, five, rtol=0, atol=1e-9)


@pytest.mark.parametrize("attack", ["model", "data"])
@pytest.mark.parametrize("regularizer", ["squared-l2", "smooth-l2"])
def test_several_users_share_the_work_of_one_target(attack: str, regularizer: str) -> None:
    """k users each hold the model of the k-th part of the gradient: the same limit, or farther."""
    distances = []
    for strategic, users in (("4", 5), ("4,5", 6)):
        config = configure(
            attack=attack, strategic_users=strategic, users=users, regularizer=regularizer
        )
        problem = build_problem(config)
        rho = attacked_equilibrium(problem).rho
        distances.append(float(torch.linalg.vector_norm(rho - problem.target)))
    if regularizer == "squared-l2":
        assert max(distances) < REACHED
    else:
        assert distances[1] < 0.9 * distances[0]


def test_local_models_start_at_theta_spade_plus_noise() -> None:
    config = configure(
        attack="data",
        initialization="attack-model",
        initialization_noise=0.1,
        local_solver="adam",
    )
    problem = build_problem(config)
    poisoned, honest = (
        kind(problem, users, None).start()  # type: ignore[arg-type]
        for kind, users in ((PoisonedClient, (4,)), (HonestClient, (0, 1)))
    )
    noise = poisoned[0] - plan(problem, 4).attack_model
    assert 0 < float(noise.abs().max()) < 0.6
    assert 0 < float((honest - problem.initial).abs().max()) < 0.6
    assert not torch.equal(honest[0], honest[1])
    still = build_problem(
        configure(attack="data", initialization="attack-model", local_solver="adam")
    )
    assert torch.equal(PoisonedClient(still, (4,), None).start()[0], plan(still, 4).attack_model)  # type: ignore[arg-type]


SMALL_DIGITS = {
    "dataset": "digits",
    "points-per-user": "60",
    "users": 4,
    "strategic-users": "2,3",
    "target-shift": "1,2",
    "nu": 0.1,
    "evaluate-every": 0,
}


def test_competing_attackers_meet_in_the_middle() -> None:
    """Each cancels what it takes for its allies': rho ends at the mean of the targets.

    Their reports drift apart by (target_1 - target_2)/(k eta) a round, for ever.
    """
    config = parse_config({**SMALL_DIGITS, "rounds": 25})
    problem = build_problem(config)
    one, two = problem.targets[1], problem.targets[2]
    assert config.allies(2) == 1
    records = play(config)
    rho = records[-1].rho
    middle = (one + two) / 2
    assert float(torch.linalg.vector_norm(rho - middle)) < 1e-3 * float(
        torch.linalg.vector_norm(one - two)
    )
    apart = [float(torch.linalg.vector_norm(r.accepted[2] - r.accepted[3])) for r in records]
    growth = float(torch.linalg.vector_norm(one - two)) / (2 * records[0].eta)
    assert apart[-1] - apart[-2] == pytest.approx(growth, rel=1e-6)


def test_competing_model_attacks_have_an_equilibrium_of_their_own() -> None:
    problem = build_problem(parse_config({**SMALL_DIGITS, "attack": "model"}))
    assert not torch.equal(plan(problem, 2).attack_model, plan(problem, 3).attack_model)
    found = attacked_equilibrium(problem)
    assert found.converged
    gaps = [float(torch.linalg.vector_norm(found.rho - t)) for t in problem.targets.values()]
    assert min(gaps) > 1


def test_a_fabricated_dataset_is_made_once() -> None:
    problem = build_problem(configure(attack="data", dataset="synthetic-linear"))
    assert fabricate(problem, 4) is fabricate(problem, 4)
    assert plan(problem, 4) is plan(problem, 4)
