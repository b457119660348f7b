"""Kinks at attack models; one minimiser, many or none: every set proves itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pfl_flower.attacks.equivalence import honest_sum
from pfl_flower.objective.regularizers import L2
from pfl_flower.objective.user_data import UserData
from pfl_flower.solvers.equilibrium import TOLERANCE, Equilibrium, equilibrium, minimise
from pfl_flower.solvers.minimisers import examined
from pfl_flower.solvers.population import Population
from pfl_flower.solvers.shared_loss import SharedLoss, shrunk
from tests.support import problems, reference

LOGISTIC = problems.LossCase("logistic")
SOFTMAX = problems.LossCase("softmax", outputs=3)
LINES = problems.LossCase("least-squares")


def norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))


def opinions(users: list[reference.User], lam: float, rho: Tensor) -> Tensor:
    """Each user's exact pull under l2, by KKT: the reference's own solve says that it is one.

    At the kink it is the loss's gradient, of at most lam; elsewhere one of length lam along z.
    """
    pulls = []
    for user in users:
        slope = reference.gradient(user.loss, rho)
        if norm(slope) > lam:
            theta = reference.minimise(
                lambda t, user=user: user.loss(t) + reference.coupling("l2", lam, rho, t),
                rho - slope * (0.1 / norm(slope)),
                tolerance=1e-8,
            )
            slope = reference.gradient(user.loss, theta)
            apart = rho - theta
            assert norm(slope - lam * apart / norm(apart)) <= 1e-7
        pulls.append(slope)
    return torch.stack(pulls)


@pytest.mark.parametrize("models", [1, 2, 3])
@pytest.mark.parametrize("case", problems.LOSSES)
def test_an_attack_model_that_l2_holds_rho_at_is_an_equilibrium(
    case: problems.LossCase, models: int
) -> None:
    """Three users pull with at most 3 lam: the subdifferential there is a ball of m lam."""
    population, users = problems.small_population(case, "l2", lam=0.4, seed=problems.generator(3))
    spade = 2 * problems.normal(population.model.dim, seed=problems.generator(4))
    found = equilibrium(population, attack_models=spade.expand(models, -1))
    others = opinions(users, 0.4, spade).sum(dim=0)
    left = max(0.0, norm(others) - models * 0.4)
    assert norm(others) > 0.4
    assert found.converged
    # The conditions of the equilibrium at spade, by the reference's pulls, and by nothing of ours.
    assert torch.equal(found.rho, spade) == (left == 0)
    here = SharedLoss(population, spade.expand(models, -1)).at(spade, spade.expand(3, -1))
    assert here.residual == pytest.approx(left, abs=1e-7)
    assert {1: left > 0, 2: True, 3: left == 0}[models]


def test_a_search_that_begins_at_a_kink_leaves_it_where_the_ball_is_too_small() -> None:
    population, _ = problems.small_population(LOGISTIC, "l2", lam=0.4, seed=problems.generator(3))
    spade = 2 * problems.normal(2, seed=problems.generator(4))
    found = equilibrium(population, attack_models=spade[None], start=spade)
    cold = equilibrium(population, attack_models=spade[None])
    assert found.converged
    assert norm(found.rho - spade) > 0.1
    torch.testing.assert_close(found.rho, cold.rho, rtol=0, atol=1e-7)


@pytest.mark.parametrize("radius", [0.0, 0.5, 5.0, 7.0])
def test_the_shortest_subgradient(radius: float) -> None:
    gradient = torch.tensor([3.0, 4.0], dtype=torch.float64)
    short = shrunk(gradient, radius)
    assert norm(short) == pytest.approx(max(0.0, 5.0 - radius))
    # The rest of it is in the ball.
    assert norm(gradient - short) <= radius * (1 + 1e-12)


def many(
    case: problems.LossCase, lam: float, models: Tensor | None = None, users: int = 2
) -> tuple[SharedLoss, list[reference.User], Equilibrium]:
    population, listed = problems.small_population(
        case, "l2", lam=lam, users=users, nu=0.1, seed=problems.generator(5)
    )
    shared = SharedLoss(population, models)
    # A search from afar ends on the edge of the segment; from inside it has nothing to do.
    found = minimise(shared)
    middle = (found.theta.sum(dim=0) + (0 if models is None else models[0])) / 2
    inside = minimise(shared, examined(shared, found, near=middle).rho)
    assert inside.converged
    return shared, listed, inside


@pytest.mark.parametrize(("case", "lam"), [(LOGISTIC, 0.6), (LINES, 0.05)], ids=str)
def test_two_users_of_l2_leave_a_segment(case: problems.LossCase, lam: float) -> None:
    """Between their optima both pull with all they have, and the other way round."""
    shared, users, found = many(case, lam)
    middle = examined(shared, found)
    assert not middle.converged
    away = 100 * (found.theta[1] - found.theta[0])
    ends = [examined(shared, found, near=found.rho + side * away) for side in (-1.0, 1.0)]
    length = norm(ends[1].rho - ends[0].rho)
    assert middle.length == pytest.approx(length, rel=1e-4)
    assert length > 0.1
    for share in (0.01, 0.3, 0.99):
        rho = ends[0].rho + share * (ends[1].rho - ends[0].rho)
        assert norm(opinions(users, lam, rho).sum(dim=0)) <= 1e-6
    for share in (-0.05, 1.05):
        rho = ends[0].rho + share * (ends[1].rho - ends[0].rho)
        assert norm(opinions(users, lam, rho).sum(dim=0)) > 1e-5


def test_as_many_strategic_as_honest_users_leave_a_segment_that_ends_at_the_model() -> None:
    spade = torch.tensor([[4.0, -3.0]], dtype=torch.float64)
    shared, users, found = many(LOGISTIC, 0.4, spade, users=1)
    near = examined(shared, found, near=spade[0] + 5 * (spade[0] - found.theta[0]))
    torch.testing.assert_close(near.rho, spade[0], rtol=0, atol=1e-5)
    rest = examined(shared, found, near=found.theta[0])
    assert rest.length == pytest.approx(norm(rest.rho - spade[0]), rel=1e-4)
    halfway = (rest.rho + spade[0]) / 2
    there = (halfway - spade[0]) / norm(halfway - spade[0])
    assert norm(opinions(users, 0.4, halfway).sum(dim=0) + 0.4 * there) <= 1e-6


def test_the_nearest_of_many_is_nearer_than_the_others() -> None:
    shared, _, found = many(LOGISTIC, 0.6)
    ended = found.rho + torch.tensor([0.02, -0.3], dtype=torch.float64)
    best = examined(shared, found, near=ended)
    for seed in range(3):
        other = examined(shared, found, near=problems.normal(2, seed=problems.generator(seed)))
        assert other.residual <= 10 * TOLERANCE
        assert norm(best.rho - ended) <= norm(other.rho - ended) + 1e-5


@pytest.mark.parametrize("name", problems.REGULARIZERS)
@pytest.mark.parametrize("case", problems.LOSSES)
@pytest.mark.parametrize("nu", [0.0, 0.3])
def test_three_users_in_general_position_have_one_minimiser(
    case: problems.LossCase, name: str, nu: float
) -> None:
    population, _ = problems.small_population(case, name, nu=nu, seed=problems.generator(5))
    shared = SharedLoss(population)
    found = examined(shared, minimise(shared))
    assert found.converged
    assert found.length == 0
    assert found.shifts == (2 if case.name == "softmax" and nu == 0 else 0)


@pytest.mark.parametrize("name", problems.REGULARIZERS)
def test_shifts_that_no_point_sees_are_kept_from_where_the_run_ended(name: str) -> None:
    """A constant for all classes, and a feature that is always 0: LOSS is the same to rounding."""
    users = problems.small_users(SOFTMAX, sizes=[7, 9, 11], inputs=2, seed=problems.generator(6))
    dead = [
        UserData(torch.cat([user.features, torch.zeros(len(user.labels), 1)], dim=1), user.labels)
        for user in users
    ]
    shared = SharedLoss(problems.population(dead, SOFTMAX, name, lam=1.0, nu=0.0))
    found = minimise(shared)
    shift = torch.zeros(3, 3, dtype=torch.float64)
    shift[:, 0] += 0.7
    shift[1, 2] += 1.3
    moved = examined(shared, found, near=found.rho + shift.reshape(-1))
    # Two features shift all classes, three classes the dead one: a constant there is both.
    assert moved.shifts == 2 + 3
    assert moved.converged
    torch.testing.assert_close(moved.rho, found.rho + shift.reshape(-1), rtol=0, atol=1e-6)
    cold, warm = (shared.at(one.rho, one.theta) for one in (found, moved))
    assert float(cold.value) == pytest.approx(float(warm.value), abs=1e-10)
    assert warm.residual <= 10 * TOLERANCE


@pytest.mark.parametrize("name", problems.REGULARIZERS)
@pytest.mark.parametrize("case", [LOGISTIC, SOFTMAX], ids=lambda case: case.name)
def test_without_nu_separable_data_have_no_minimiser(case: problems.LossCase, name: str) -> None:
    """The gradient falls below any tolerance far out, and the value falls further out still."""
    seed = problems.generator(7)
    labels = problems.draw_labels(case, 12, seed=seed)
    classes = labels.long() if case.outputs > 1 else (labels > 0).long()
    centres = 4 * torch.eye(3, dtype=torch.float64)[classes]
    user = UserData(centres + 0.1 * problems.normal(12, 3, seed=seed), labels)
    shared = SharedLoss(problems.population([user, user], case, name, lam=1.0, nu=0.0))
    found = minimise(shared)
    assert found.residual <= 1e-6
    told = examined(shared, found)
    assert not told.converged
    if found.converged:
        assert math.isinf(told.length)


@pytest.mark.parametrize("factor", [0.5, 1 - 1e-9, 1.0])
def test_a_target_on_the_edge_of_what_can_be_held_is_one_end_of_many(factor: float) -> None:
    """One honest user and one CGA user under l2: the pulls are equal from the target on."""
    population, _ = problems.small_population(
        LOGISTIC, "l2", lam=0.4, users=1, nu=0.1, seed=problems.generator(5)
    )
    target = torch.tensor([4.0, -3.0], dtype=torch.float64)
    pull = norm(honest_sum(population, target).value)
    shared = SharedLoss(population, target[None], L2(lam=pull / factor))
    found = examined(shared, minimise(shared))
    assert torch.equal(found.rho, target)
    assert found.converged == (factor == 0.5)
    assert (found.length > 0.5) == (factor != 0.5)


def test_what_missed_its_tolerance_is_returned_as_it_is() -> None:
    population, _ = problems.small_population(SOFTMAX, "smooth-l2", seed=problems.generator(34))
    shared = SharedLoss(population)
    stopped = minimise(shared, max_iterations=1)
    assert not stopped.converged
    assert examined(shared, stopped) is stopped
    assert isinstance(population, Population)
