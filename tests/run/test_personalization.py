"""``personalization``: each value against an independent minimiser, and what its reports can do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from numpy.typing import NDArray
from torch import Tensor

import pfl_flower as pfl
from clients.honest import HonestClient
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.run.attack_plans import honest_users
from pfl_flower.run.config import RunConfig
from pfl_flower.run.personalization import WAYS, Personalization
from pfl_flower.run.problem import build_problem
from pfl_flower.run.step_sizes import server_step_sizes
from pfl_flower.transport.broadcasts import Broadcast
from pfl_flower.transport.records import ARRAYS
from pfl_flower.transport.wire import to_record, to_tensor
from tests.support.runs import configure, play, tampering, trajectory

Array = NDArray[np.float64]
Loss = Callable[[Array], tuple[float, Array]]

SLOPED = ("classical", "ditto")
STEEP = {"nu": 2.0, "rounds": 200}
"""Settings in which gradient descent has arrived when it stops."""


def loss_of(config: RunConfig, user: int) -> Loss:
    """Return ``L_n`` and its gradient by Equation 3, from the points alone."""
    problem = build_problem(config)
    (held,) = problem.datasets((user,))
    features, labels = held.features.double().numpy(), held.labels.double().numpy()

    def loss(theta: Array) -> tuple[float, Array]:
        margins = labels * (features @ theta)
        value = np.logaddexp(0.0, -margins).sum() + config.nu * theta @ theta
        pull = -labels * np.exp(-np.logaddexp(0.0, margins))
        return value, features.T @ pull + 2 * config.nu * theta

    return loss


def minimiser(losses: list[Loss], dim: int) -> Array:
    """Return what SciPy makes of a sum of losses; not believed unless its gradient is nearly 0."""

    def total(theta: Array) -> tuple[float, Array]:
        parts = [loss(theta) for loss in losses]
        return sum(value for value, _ in parts), np.sum([slope for _, slope in parts], axis=0)

    found = scipy.optimize.minimize(
        total, np.zeros(dim), jac=True, method="L-BFGS-B", options={"ftol": 0.0, "gtol": 1e-9}
    )
    assert np.linalg.norm(total(found.x)[1]) < 1e-6
    return np.asarray(found.x)


def models_at(config: RunConfig, rho: Tensor) -> tuple[Tensor, Tensor]:
    """Return honest users' reports at rho and the models behind them, asked three times."""
    problem, state = build_problem(config), RecordDict()
    users = honest_users(problem)
    client = HonestClient(problem, users, state)
    for round in (1, 2, 3):
        told = Broadcast(
            round=round,
            users=users,
            last_accepted=(0,) * len(users),
            rho=rho,
            eta=0.1,
            eta_sum=0.1 * (round - 1),
        )
        reports = client.report(told).gradients.values_by_user
    return reports, client.recall("honest")["theta"]


@pytest.mark.parametrize("personalization", SLOPED)
def test_rho_ends_where_the_sum_of_losses_is_least(personalization: str) -> None:
    config = configure(personalization=personalization, strategic_users="none", **STEEP)
    best = minimiser([loss_of(config, user) for user in range(config.users)], 6)
    ended = play(config)[-1].rho.numpy()
    assert np.linalg.norm(best) > 0.1
    assert np.abs(ended - best).max() < 1e-7


def test_reports_are_gradients_of_the_losses_at_rho() -> None:
    rho = torch.linspace(-1, 1, 6, dtype=torch.float64)
    for personalization in SLOPED:
        config = configure(personalization=personalization)
        reports, _ = models_at(config, rho)
        slopes = [loss_of(config, user)(rho.numpy())[1] for user in range(4)]
        assert np.abs(reports.numpy() - np.array(slopes)).max() < 1e-10


def test_local_models_are_the_minimisers_of_their_own_losses() -> None:
    config = configure(personalization="local", nu=0.3)
    reports, theta = models_at(config, torch.ones(6, dtype=torch.float64))
    best = [minimiser([loss_of(config, user)], 6) for user in range(4)]
    assert np.abs(theta.numpy() - np.array(best)).max() < 1e-6
    assert not bool(reports.any())


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_local_models_are_reached_by_steps_as_well(solver: str) -> None:
    keys: dict[str, Any] = {"local_solver": solver, "local_steps": 300, "local_lr_floor": 0.01}
    config = configure(personalization="local", nu=1.0, **keys)
    _, theta = models_at(config, torch.ones(6, dtype=torch.float64))
    best = [minimiser([loss_of(config, user)], 6) for user in range(4)]
    assert np.abs(theta.numpy() - np.array(best)).max() < 1e-4


@pytest.mark.parametrize("lam", [0.5, 20.0])
def test_ditto_ties_models_to_rho_and_classical_has_none(lam: float) -> None:
    rho = torch.linspace(-1, 1, 6, dtype=torch.float64)
    config = configure(personalization="ditto", lam=lam)

    def tied(user: int) -> Loss:
        own = loss_of(config, user)

        def loss(theta: Array) -> tuple[float, Array]:
            value, slope = own(theta)
            away = theta - rho.numpy()
            return value + lam * away @ away, slope + 2 * lam * away

        return loss

    best = np.array([minimiser([tied(user)], 6) for user in range(4)])
    _, theta = models_at(config, rho)
    assert np.abs(theta.numpy() - best).max() < 1e-6
    _, shared = models_at(configure(personalization="classical"), rho)
    assert torch.equal(shared, rho.expand(4, -1))


ATTACKED: list[dict[str, Any]] = [
    {},
    {"strategic_users": "none"},
    {"local_solver": "adam", "batch_size": 5},
    {"local_solver": "sgd", "attack": "label-flip"},
    {"attack": "rule-aware", "aggregation": "median"},
    {"attack": "model", "lam": 2.0},
    {"attack": "data"},
    {"participation": 0.6, "attack": "min-max"},
    {"aggregation": "fltrust"},
    {"server_optimizer": "adam", "server_lr": 0.05, "estimator": "oracle"},
    {"max_gradient_norm": 3.0},
]


@pytest.mark.parametrize("keys", ATTACKED, ids=str)
def test_the_rho_of_ditto_is_that_of_classical_to_the_bit(keys: dict[str, Any]) -> None:
    found = {
        (way, nodes): trajectory(play(configure(personalization=way, **keys), nodes=nodes))
        for way in SLOPED
        for nodes in (1, 3)
    }
    first = found["classical", 1]
    assert first.isfinite().all()
    assert (first[-1] - first[0]).abs().max() > 1e-3
    assert all(torch.equal(one, first) for one in found.values())


def test_regularisers_and_steps_of_ditto_move_its_models_alone() -> None:
    rhos, thetas = [], []
    for keys in ({}, {"regularizer": "l2"}, {"lam": 9.0}, {"local_solver": "sgd"}):
        config = configure(personalization="ditto", **keys)
        rhos.append(trajectory(play(config)))
        thetas.append(models_at(config, torch.ones(6, dtype=torch.float64))[1])
    assert all(torch.equal(one, rhos[0]) for one in rhos)
    assert all(not torch.allclose(one, thetas[0]) for one in thetas[1:])


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_no_attack_moves_rho_in_local(attack: str) -> None:
    images = {"dataset": "digits"} if ATTACKS.row(attack).trigger else {}
    keys = {"personalization": "local", "attack": attack, "rounds": 2, **images}
    records = play(configure(**keys))
    start = build_problem(configure(**keys)).initial
    assert torch.equal(trajectory(records), start.expand(2, -1))
    assert [len(record.accepted) for record in records] == [5, 5]


def test_what_is_sent_all_the_same_is_refused_in_local() -> None:
    def push(message: Message, reply: Message) -> Message:
        record = reply.content[ARRAYS]
        assert isinstance(record, ArrayRecord)
        reply.content[ARRAYS] = to_record({k: 0 * to_tensor(v) + 1e-9 for k, v in record.items()})
        return reply

    config = configure(personalization="local", rounds=1)
    (record,) = play(config, nodes=5, app=tampering(1, push))
    assert [(one.user, str(one.reason)) for one in record.rejections] == [(1, "norm-limit")]
    assert torch.equal(record.rho, build_problem(config).initial)


@pytest.mark.parametrize("attack", ["cga", "data", "model"])
def test_attacks_hold_rho_at_the_target_against_gradients_of_losses(attack: str) -> None:
    """CGA by its wish; data and a fixed model by the gradient that they have at the target."""
    for way in SLOPED:
        config = configure(personalization=way, attack=attack, **STEEP)
        problem = build_problem(config)
        ended = play(config)[-1].rho
        assert torch.linalg.vector_norm(problem.target) > 1
        assert torch.linalg.vector_norm(ended - problem.target) < 1e-6


def test_fabricated_data_have_the_gradient_that_is_wished_for_at_the_target() -> None:
    from pfl_flower.run.strategic_user import other_population

    config = configure(personalization="classical", attack="data")
    problem = build_problem(config)
    target = problem.target
    others = np.sum([loss_of(config, user)(target.numpy())[1] for user in range(4)], axis=0)
    made = other_population(problem, (4,)).gradient(target[None])[0].numpy()
    assert np.abs(made + others).max() < 1e-5 * np.linalg.norm(others)


def test_without_a_limit_one_user_moves_rho_anywhere_and_with_one_by_eta_times_it() -> None:
    limit = 3.0
    free = configure(personalization="classical", attack="inner-product", attack_strength=1e6)
    assert torch.linalg.vector_norm(play(free)[-1].rho) > 1e3
    config = configure(personalization="classical", max_gradient_norm=limit, rounds=4)
    problem = build_problem(config)
    rho = problem.initial
    for record in play(config):
        pushed = record.strategic_rows.values_by_user
        assert torch.linalg.vector_norm(record.rho - rho) <= 5 * limit * record.eta * (1 + 1e-9)
        assert float(torch.linalg.vector_norm(pushed)) == pytest.approx(limit, rel=1e-9)
        rho = record.rho
        # Whose loss is steeper than the limit does not count, and is told so.
        assert all(str(one.reason) == "norm-limit" for one in record.rejections)
        assert 4 not in {one.user for one in record.rejections}
    slopes = [loss_of(config, user)(problem.initial.numpy())[1] for user in range(4)]
    steep = {user for user in range(4) if np.linalg.norm(slopes[user]) > limit}
    assert steep == {one.user for one in play(config)[0].rejections} != set()


@pytest.mark.parametrize("dataset", ["synthetic-logistic", "digits"])
def test_the_automatic_step_is_a_third_of_one_over_the_curvature(dataset: str) -> None:
    """L bounds the largest eigenvalue of ``sum_n Hess L_n``, found here by power iteration."""
    config = configure(dataset=dataset, personalization="classical", points_per_user="30,20")
    problem = build_problem(config)
    population = problem.population(tuple(range(config.users)))
    eta = server_step_sizes(problem).at(1)
    rho = torch.zeros_like(problem.initial)
    way = torch.randn(len(rho), dtype=rho.dtype, generator=torch.Generator().manual_seed(1))
    for _ in range(100):
        way = way / torch.linalg.vector_norm(way)
        ends = [population.gradient((rho + side * 1e-4 * way).expand(5, -1)) for side in (1, -1)]
        way = (ends[0] - ends[1]).sum(dim=0) / 2e-4
    curvature = float(torch.linalg.vector_norm(way))
    # The bound is for the worst rho, softmax's twice what it is where all classes are alike.
    assert 1 / 8 < 3 * eta * curvature <= 1 + 1e-9


def test_the_automatic_step_is_constant_and_scaled_by_its_factor() -> None:
    whole, half = (
        server_step_sizes(build_problem(configure(personalization="ditto", **keys)))
        for keys in ({}, {"server_lr_factor": 0.5})
    )
    assert half.at(3) == 0.5 * whole.at(1)


def test_joint_is_what_runs_were_before_there_was_a_choice() -> None:
    assert configure() == configure(personalization="joint")
    assert [name for name, way in WAYS.items() if way.coupled] == ["joint"]
    problem = build_problem(configure(regularizer="l2"))
    assert problem.plausible is problem.regularizer is problem.pretended


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"personalization": "fedavg"}, "personalization = 'fedavg': expected 'joint', 'classical'"),
    (
        {"personalization": "classical", "regularizer": "l2"},
        "regularizer = l2: expected squared-l2, unless personalization = joint, ditto",
    ),
    (
        {"personalization": "classical", "lam": 2.0},
        "lam = 2.0: expected 1.0, unless personalization = joint, ditto, or classical with attack",
    ),
    (
        {"personalization": "local", "lam": 2.0, "attack": "model"},
        "lam = 2.0: expected 1.0, unless personalization = joint, ditto, or classical with attack",
    ),
    (
        {"personalization": "ditto", "regularizer": "l2", "gradient_rtol": 0.1},
        "gradient-rtol = 0.1: expected 1e-06, unless personalization = joint",
    ),
    (
        {"personalization": "ditto", "local_solver": "sgd", "update_order": "simultaneous"},
        "update-order = simultaneous: expected local-first, unless personalization = joint",
    ),
    (
        {"personalization": "ditto", "local_solver": "sgd", "attack": "data"}
        | {"initialization": "attack-model"},
        "initialization = attack-model: expected global, unless personalization = joint",
    ),
    (
        {"personalization": "classical", "local_solver": "sgd", "local_steps": 2},
        "local-steps = 2: expected 1, for personalization = classical, where users take no steps",
    ),
    (
        {"personalization": "local", "aggregation": "median"},
        "aggregation = median: expected sum, for personalization = local, where rho stays",
    ),
    (
        {"personalization": "local", "server_lr": 0.1},
        "server-lr = 0.1: expected auto, for personalization = local, where rho stays",
    ),
    (
        {"personalization": "local", "max_gradient_norm": 0.1},
        "max-gradient-norm = 0.1: expected 0.0, for personalization = local",
    ),
    (
        {"personalization": "local", "nu": 0.0},
        "nu = 0.0: expected a positive number, for exact solves of personalization = local",
    ),
    (
        {"personalization": "ditto", "equilibrium": True},
        "equilibrium = True: expected false, with personalization = ditto",
    ),
    (
        {"personalization": "classical", "server_optimizer": "adam", "estimator": "oracle"},
        "server-lr = auto: expected a number, under Adam",
    ),
    (
        {"personalization": "classical", "dataset": "digits", "model": "two-layer"}
        | {"local_solver": "sgd", "strategic_users": "none"},
        "server-lr = auto: expected a number, for personalization = classical: the smoothness of",
    ),
]


@pytest.mark.parametrize(("keys", "said"), REFUSED, ids=[said[:50] for _, said in REFUSED])
def test_what_means_nothing_is_one_line(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(pfl.ConfigError) as refused:
        configure(**keys)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


OWN = {"dataset": "digits", "partition": "dirichlet", "users": 4, "strategic_users": "3"}


@pytest.mark.parametrize("personalization", WAYS)
def test_a_run_tells_what_it_is_and_measures_rho_and_every_user(
    personalization: Personalization, tmp_path: Path
) -> None:
    keys = {**OWN, "points_per_user": "60", "nu": 0.1, "rounds": 3, "evaluate_every": 3}
    result = pfl.run(**keys, personalization=personalization, output=tmp_path)
    assert result.passed
    metrics = result.metrics
    own = [metrics[f"own_{model}_{of}"] for model in ("theta", "rho") for of in ("mean", "worst")]
    if personalization == "classical":
        assert own[:2] == own[2:]
    if personalization == "local":
        assert metrics["distance_to_start"] == 0
        assert metrics["own_theta_mean"] == pytest.approx(metrics["own_alone_mean"])
    for name in ("accuracy_true", "local_accuracy"):
        assert 0 <= metrics[name] <= 1
    told = json.loads((result.folder / "summary.json").read_text())
    assert told["personalization"] == WAYS[personalization].text
    checks = {
        "joint": "GRAD(rho) of squared-l2, all vectors",
        "local": "0: no report moves rho, which stays at its start",
    }
    nothing = "nothing but that they are finite: max-gradient-norm is not set"
    assert told["reports"] == checks.get(personalization, nothing)


@pytest.mark.parametrize("personalization", ["classical", "ditto", "local"])
def test_a_run_goes_on_from_its_checkpoint_to_the_same_end(
    personalization: str, tmp_path: Path
) -> None:
    keys = {
        "dataset": "synthetic-logistic",
        "users": 4,
        "points_per_user": "20",
        "strategic_users": "3",
        "nu": 0.1,
        "local_solver": "sgd",
        "evaluate_every": 2,
        "checkpoint_every": 2,
        "personalization": personalization,
    }
    whole = pfl.run(**keys, rounds=6, output=tmp_path / "whole")
    pfl.run(**keys, rounds=4, output=tmp_path / "parts")
    resumed = pfl.run(**keys, rounds=6, output=tmp_path / "parts", resume="auto")
    assert torch.equal(torch.as_tensor(whole.rho), torch.as_tensor(resumed.rho))
    assert whole.metrics["local_accuracy"] == resumed.metrics["local_accuracy"]
