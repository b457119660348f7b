"""Many small exact solves as one batch: the same solutions as one user at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.run.problem import build_problem
from pfl_flower.solvers import proximal, user_batch
from pfl_flower.solvers.population import Population
from pfl_flower.solvers.proximal import Solution
from tests.support import problems
from tests.support.card import DEVICE, Card
from tests.support.problems import Problem, draw
from tests.support.runs import configure, play, trajectory

# More points than inputs, and fewer: systems in the space of theta, and of the points.
SHAPES = [pytest.param(12, 3, id="n>d"), pytest.param(5, 9, id="n<d")]


def both(problem: Problem, patch: pytest.MonkeyPatch, **options: float) -> tuple[Solution, ...]:
    """Solve together, then one user at a time."""
    patch.setattr(user_batch, "LEAST_USERS", 2)
    patch.setattr(user_batch, "FEATURES_AT_ONCE", 7 * problem.loss.features[0].numel())
    together = problem.solve(**options)
    patch.setattr(user_batch, "LEAST_USERS", 10**9)
    return together, problem.solve(**options)


@pytest.mark.parametrize(("points", "inputs"), SHAPES)
@pytest.mark.parametrize("name", problems.REGULARIZERS)
@pytest.mark.parametrize("case", problems.LOSSES)
@pytest.mark.parametrize(("size", "far"), [(1.0, 3.0), (30.0, 100.0)])
def test_together_equals_one_at_a_time(
    case: problems.LossCase,
    name: str,
    points: int,
    inputs: int,
    size: float,
    far: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In parts of seven; features and starts of two scales, the second saturates the losses."""
    problem = draw(
        case, name, seed=3, users=15, points=points, inputs=inputs, size=size, far=far, nu=0.01
    )
    alone: list[int] = []
    solve = proximal.minimise_user

    def counted(*arguments: Any, **options: Any) -> Any:
        alone.append(1)
        return solve(*arguments, **options)

    monkeypatch.setattr(proximal, "minimise_user", counted)
    together, single = both(problem, monkeypatch)
    closed = case.name == "least-squares" and name == "squared-l2"
    # The batch has solved nearly all by itself, then the loop solved all.
    assert (0 if closed else 15) <= len(alone) <= 17
    assert bool(together.converged.all())
    assert bool(single.converged.all())
    torch.testing.assert_close(together.theta, single.theta, rtol=0, atol=1e-9)
    worked_out = proximal.proximal_residual(
        problem.loss, problem.regularizer, problem.rho, together.theta
    )
    torch.testing.assert_close(together.residual, worked_out, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("case", problems.LOSSES)
def test_users_at_the_kink_stay_there(
    case: problems.LossCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = draw(case, "l2", seed=4, users=20, points=5, inputs=9, nu=0.01)
    opinion = problem.loss.gradient(problem.rho.repeat(20, 1))
    lam = torch.linalg.vector_norm(opinion, dim=1).median().item()
    problem = replace(problem, regularizer=problems.build("l2", lam))
    together, single = both(problem, monkeypatch)
    held = (together.theta == problem.rho).all(dim=1)
    assert 9 <= int(held.sum()) <= 11
    assert torch.equal(held, (single.theta == problem.rho).all(dim=1))
    assert int(together.iterations[held].max()) == 0
    assert float(together.residual[held].max()) == 0
    torch.testing.assert_close(together.theta, single.theta, rtol=0, atol=1e-9)


def test_a_warm_start_is_free_in_the_users_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw(problems.LossCase("logistic"), "smooth-l2", seed=5, users=20, points=5, inputs=9)
    together, _ = both(problem, monkeypatch)
    monkeypatch.setattr(user_batch, "LEAST_USERS", 2)
    again = replace(problem, start=together.theta).solve()
    assert again.iterations.tolist() == [0] * 20
    some = together.theta.clone()
    some[4] += 0.1
    warm = replace(problem, start=some).solve()
    assert warm.iterations.nonzero()[:, 0].tolist() == [4]
    assert torch.equal(warm.theta[5], together.theta[5])


def test_too_few_iterations_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw(problems.LossCase("logistic"), "l2", seed=6, users=20, points=5, inputs=9)
    together, _ = both(problem, monkeypatch, max_iterations=1)
    assert not bool(together.converged.any())
    assert int(together.iterations.max()) == 1
    assert float(together.residual.min()) > 1e-10


def test_whom_the_batch_fails_is_solved_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the batch finds no direction for three users, whatever the reason."""
    problem = draw(problems.LossCase("logistic"), "l2", seed=7, users=20, points=5, inputs=9)
    found = user_batch.Batch.direction

    def failing(batch: user_batch.Batch, *arguments: torch.Tensor) -> torch.Tensor:
        step = found(batch, *arguments)
        lost = torch.isin(batch.loss.features[:, 0, 0], problem.loss.features[[2, 3, 11], 0, 0])
        step[lost] = torch.nan
        return step

    monkeypatch.setattr(user_batch.Batch, "direction", failing)
    together, single = both(problem, monkeypatch)
    assert bool(together.converged.all())
    assert torch.equal(together.theta[[2, 3, 11]], single.theta[[2, 3, 11]])


@pytest.mark.parametrize(
    ("users", "points", "inputs", "outputs", "expected"),
    [
        (64, 10, 20, 1, True),
        (63, 10, 20, 1, False),
        (64, 100, 20, 1, True),
        (64, 10, 500, 1, True),
        (64, 100, 500, 1, False),
        (64, 10, 20, 3, True),
        (64, 10, 65, 10, False),
    ],
)
def test_when_a_batch_pays(
    users: int, points: int, inputs: int, outputs: int, expected: bool
) -> None:
    case = problems.LossCase("softmax" if outputs > 1 else "logistic", outputs=outputs)
    seed = problems.generator(8)
    loss = problems.local_loss(case, seed=seed, users=users, points=points, inputs=inputs)
    assert user_batch.pays(loss) == expected


def test_what_pays_on_a_card_and_how_much_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few users with dense systems; the systems count where they are more than the features."""
    case, seed = problems.LossCase("softmax", outputs=10), problems.generator(8)
    loss = problems.local_loss(case, seed=seed, users=5, points=30, inputs=65)
    assert not user_batch.spares_waits(loss), "on the processor one at a time is as fast"
    with Card():
        there = LocalLoss.build(
            loss.model, loss.loss, loss.features.to(DEVICE), loss.labels.to(DEVICE)
        )
        assert user_batch.spares_waits(there)
        assert not user_batch.spares_waits(there.select(slice(0, 1)))
        batch = user_batch.Batch.build(there, problems.build("squared-l2", 1.0))
        monkeypatch.setattr(user_batch, "NUMBERS_ON_A_CARD", 2 * 650**2)
        assert [part.loss.users for _, part in batch.split()] == [2, 2, 1]
    wide = problems.local_loss(case, seed=seed, users=5, points=30, inputs=151)
    with Card():
        beyond = LocalLoss.build(
            wide.model, wide.loss, wide.features.to(DEVICE), wide.labels.to(DEVICE)
        )
        assert not user_batch.spares_waits(beyond), "1,510 parameters: no dense systems"


def test_parts_keep_what_they_have_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    case = problems.LossCase("logistic", outputs=1)
    loss = problems.local_loss(case, seed=problems.generator(2), users=5, points=6, inputs=4)
    batch = user_batch.Batch.build(loss, problems.build("squared-l2", 1.0))
    (only,) = batch.split()
    assert only[1] is batch
    monkeypatch.setattr(user_batch, "FEATURES_AT_ONCE", 2 * 6 * 4)
    first, again = list(batch.split()), list(batch.split())
    assert [part.loss.users for _, part in first] == [2, 2, 1]
    assert all(one is other for (_, one), (_, other) in zip(first, again, strict=True))
    assert first[1][1].loss.features.data_ptr() == loss.features[2].data_ptr(), "nothing is copied"
    monkeypatch.setattr(user_batch, "FEATURES_AT_ONCE", 3 * 6 * 4)
    assert [part.loss.users for _, part in batch.split()] == [3, 2]


MANY = {"features": 8, "users": 150, "points_per_user": "4,6", "strategic_users": "none"}


@pytest.mark.parametrize("dataset", ["synthetic-linear", "synthetic-logistic"])
@pytest.mark.parametrize("regularizer", ["squared-l2", "l2"])
def test_batches_and_single_solves_give_one_trajectory(dataset: str, regularizer: str) -> None:
    """150 users on one node and 75 on each of two are batches; ten on each of 15 are not."""
    config = configure(**MANY, dataset=dataset, regularizer=regularizer, rounds=2)
    runs = [play(config, nodes=nodes) for nodes in (1, 2, 15)]
    assert all(record.metrics.unconverged == 0 for run in runs for record in run)
    first = trajectory(runs[0])
    assert first.abs().max() > 1e-3
    for run in runs[1:]:
        assert (trajectory(run) - first).abs().max() <= 1e-9
    assert not torch.equal(trajectory(runs[2]), first)


def test_a_selection_keeps_what_its_users_are() -> None:
    """Values, gradients and solves of some users, of two sizes, are those they have among all."""
    population = build_problem(configure(**MANY)).population(tuple(range(150)))
    rows = torch.arange(0, 150, 2)
    some = population.select(rows)
    assert isinstance(some, Population)
    draws = problems.generator(9)
    theta = problems.normal(150, 8, seed=draws)
    rho = problems.normal(8, seed=draws)
    assert some.size == 75
    torch.testing.assert_close(some.value(theta[rows]), population.value(theta)[rows])
    torch.testing.assert_close(some.gradient(theta[rows]), population.gradient(theta)[rows])
    whole = population.solve(rho, theta)
    part = some.solve(rho, theta[rows])
    torch.testing.assert_close(part.theta, whole.theta[rows], rtol=0, atol=1e-10)
    two = population.select(torch.tensor([1, 149]))
    torch.testing.assert_close(two.gradient(theta[[1, 149]]), population.gradient(theta)[[1, 149]])
