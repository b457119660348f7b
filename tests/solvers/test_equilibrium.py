from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from experiments.theory.honest_users import draw_scenario
from pfl_flower.attacks.reachable import reachable_limit
from pfl_flower.objective.losses import Logistic
from pfl_flower.objective.models import Linear
from pfl_flower.objective.regularizers import SmoothL2
from pfl_flower.solvers import shared_loss
from pfl_flower.solvers.equilibrium import Equilibrium, equilibrium
from pfl_flower.solvers.population import Population
from tests.support import problems, reference

SMOOTH = ["squared-l2", "smooth-l2"]
ALLOWED = 2 * reference.SMOOTHING
"""Most of it is for the smoothing of l2, whatever the regulariser."""


def norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))


def unit(dim: int, seed: int) -> Tensor:
    direction = problems.normal(dim, seed=problems.generator(seed))
    return direction / norm(direction)


def value(users: list[reference.User], name: str, lam: float, rho: Tensor, theta: Tensor) -> float:
    """LOSS(rho, theta) of honest users, Equation 1."""
    return sum(
        float(user.loss(t) + reference.coupling(name, lam, rho, t))
        for user, t in zip(users, theta, strict=True)
    )


def check_first_order(
    answer: Equilibrium,
    users: list[reference.User],
    name: str,
    lam: float,
    attack: Tensor | float = 0.0,
) -> None:
    """``grad L_n(theta_n) = g_n``, a gradient of R at (rho, theta_n); they cancel the attack."""
    total = torch.zeros_like(answer.rho) + attack
    for user, theta in zip(users, answer.theta, strict=True):
        opinion = reference.gradient(user.loss, theta)
        if name == "l2" and torch.equal(theta, answer.rho):
            assert norm(opinion) <= lam * (1 + 1e-9)
        else:
            pull = reference.gradient(
                lambda rho, theta=theta: reference.coupling(name, lam, rho, theta), answer.rho
            )
            torch.testing.assert_close(opinion, pull, rtol=0, atol=1e-9)
        total = total + opinion
    assert norm(total) <= 1e-8


@pytest.mark.parametrize("name", problems.REGULARIZERS)
@pytest.mark.parametrize("case", problems.LOSSES)
class TestAgainstScipy:
    @pytest.mark.parametrize("lam", [0.6, 4.0])
    def test_honest(self, case: problems.LossCase, name: str, lam: float) -> None:
        population, users = problems.small_population(
            case, name, lam=lam, seed=problems.generator(21)
        )
        answer = equilibrium(population)
        assert answer.converged
        assert answer.residual <= 1e-9
        assert answer.local_residual <= 1e-10
        expected, thetas = reference.joint_minimum(users, name, lam)
        torch.testing.assert_close(answer.rho, expected, rtol=0, atol=ALLOWED)
        torch.testing.assert_close(answer.theta, thetas, rtol=0, atol=ALLOWED)
        check_first_order(answer, users, name, lam)

    def test_model_attack(self, case: problems.LossCase, name: str) -> None:
        population, users = problems.small_population(case, name, seed=problems.generator(22))
        models = 5 * problems.normal(2, population.model.dim, seed=problems.generator(23))
        answer = equilibrium(population, attack_models=models)
        assert answer.converged
        expected, _ = reference.joint_minimum(users, name, 1.0, attack_models=models)
        torch.testing.assert_close(answer.rho, expected, rtol=0, atol=ALLOWED)
        attack = sum(
            reference.gradient(lambda rho, m=m: reference.coupling(name, 1.0, rho, m), answer.rho)
            for m in models
        )
        check_first_order(answer, users, name, 1.0, attack)
        assert norm(answer.rho - equilibrium(population).rho) > 0.05

    def test_gradient_attack(self, case: problems.LossCase, name: str) -> None:
        population, users = problems.small_population(case, name, seed=problems.generator(24))
        attack = 0.7 * unit(population.model.dim, seed=25)
        answer = equilibrium(population, attack_gradient=attack)
        assert answer.converged
        expected, _ = reference.joint_minimum(users, name, 1.0, attack_gradient=attack)
        torch.testing.assert_close(answer.rho, expected, rtol=0, atol=ALLOWED)
        check_first_order(answer, users, name, 1.0, attack)
        assert norm(answer.rho - equilibrium(population).rho) > 0.05

    def test_nothing_nearby_is_lower(self, case: problems.LossCase, name: str) -> None:
        population, users = problems.small_population(case, name, seed=problems.generator(26))
        answer = equilibrium(population)
        best = value(users, name, 1.0, answer.rho, answer.theta)
        source = problems.generator(27)
        for size in (1e-3, 1e-1, 1.0):
            for _ in range(6):
                rho = answer.rho + size * problems.normal(len(answer.rho), seed=source)
                theta = answer.theta + size * problems.normal(*answer.theta.shape, seed=source)
                assert value(users, name, 1.0, rho, theta) > best
                assert value(users, name, 1.0, rho, answer.theta + rho - answer.rho) > best

    def test_start_does_not_matter(self, case: problems.LossCase, name: str) -> None:
        population, _ = problems.small_population(case, name, seed=problems.generator(28))
        answer = equilibrium(population)
        start = answer.rho + 4 * unit(len(answer.rho), seed=29)
        far = equilibrium(population, start=start)
        assert far.converged
        torch.testing.assert_close(far.rho, answer.rho, rtol=0, atol=1e-8)
        again = equilibrium(population, start=answer.rho)
        assert again.iterations == 0
        assert torch.equal(again.rho, answer.rho)


def kinked(lam: float) -> tuple[Population, list[reference.User], Equilibrium]:
    population, users = problems.small_population(
        problems.LossCase("logistic"), "l2", lam=lam, users=4, seed=problems.generator(30)
    )
    return population, users, equilibrium(population)


@pytest.mark.parametrize("lam", [0.3, 1.5, 50.0])
def test_l2_keeps_some_users_at_rho(lam: float) -> None:
    """The stronger the coupling, the more users hold rho itself; in the end it is one model."""
    _, users, answer = kinked(lam)
    assert answer.converged
    held = int((answer.theta == answer.rho).all(dim=-1).sum())
    assert {0.3: held < 4, 1.5: 0 < held, 50.0: held == 4}[lam]
    check_first_order(answer, users, "l2", lam)
    if lam == 50.0:
        shared = reference.minimise(
            lambda theta: sum((user.loss(theta) for user in users), torch.zeros(()).double()),
            torch.zeros(2).double(),
        )
        torch.testing.assert_close(answer.rho, shared, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", problems.REGULARIZERS)
@pytest.mark.parametrize("case", problems.LOSSES)
def test_a_single_user_gets_its_own_optimum(case: problems.LossCase, name: str) -> None:
    """From far away an l2 user pulls with a constant force: the envelope has no curvature there."""
    for seed in (41, 42):
        population, (user,) = problems.small_population(
            case, name, users=1, nu=0.02, seed=problems.generator(seed)
        )
        answer = equilibrium(population)
        assert answer.converged, seed
        expected = reference.minimise(user.loss, torch.zeros_like(answer.rho))
        torch.testing.assert_close(answer.rho, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(answer.theta[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rounding", [-3.0, 3.0])
@pytest.mark.parametrize("case", problems.LOSSES)
def test_a_straight_envelope_is_left_whatever_sign_rounding_gives_its_curvature(
    case: problems.LossCase, rounding: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far from its user an envelope of l2 is straight, but for 1e-14 in which processors differ."""
    exact = shared_loss.envelope_hessian

    def rounded(*arguments: Tensor) -> Tensor:
        _, _, rho, theta, _ = arguments
        hessian, z = exact(*arguments), rho - theta
        if not bool(z.any()):
            return hessian
        unit = z / norm(z)
        left = rounding * 1e-13 * hessian.diagonal().mean() - unit @ hessian @ unit
        return hessian + left * torch.outer(unit, unit)

    monkeypatch.setattr(shared_loss, "envelope_hessian", rounded)
    for seed in range(41, 46):
        population, _ = problems.small_population(
            case, "l2", users=1, nu=0.02, seed=problems.generator(seed)
        )
        assert equilibrium(population).converged, seed


@pytest.mark.parametrize("factor", [2.9, 3.1])
@pytest.mark.parametrize("name", ["l2", "smooth-l2"])
@pytest.mark.parametrize("case", problems.LOSSES)
def test_no_minimiser_against_a_gradient_of_more_than_all_users(
    case: problems.LossCase, name: str, factor: float
) -> None:
    """Three users pull back by at most 3 lam: LOSS is unbounded below beyond that."""
    population, _ = problems.small_population(case, name, users=3, seed=problems.generator(31))
    attack = factor * unit(population.model.dim, seed=32)
    answer = equilibrium(population, attack_gradient=attack, max_iterations=12)
    assert answer.converged == (factor < 3)
    if factor > 3:
        assert answer.residual >= 0.1 * (1 - 1e-9)


@pytest.mark.parametrize("systems", [0, 100])
def test_local_solves_that_fail_are_not_hidden(systems: int) -> None:
    case = problems.LossCase("logistic")
    users = problems.small_users(case, sizes=[5, 7, 9], seed=problems.generator(33))
    population = Population(
        users,
        model=Linear(2, 1),
        loss=Logistic(),
        regularizer=SmoothL2(lam=1.0),
        nu=0.3,
        max_iterations=systems,
    )
    answer = equilibrium(population, max_iterations=30, start=torch.zeros(2).double())
    assert answer.converged == (answer.local_residual <= 1e-3) == (systems > 0)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_counts_its_steps(steps: int) -> None:
    population, _ = problems.small_population(
        problems.LossCase("softmax", outputs=3), "smooth-l2", seed=problems.generator(34)
    )
    answer = equilibrium(population, max_iterations=steps)
    assert answer.iterations == steps
    assert not answer.converged
    assert answer.residual > 1e-9


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("case", problems.LOSSES)
def test_federated_gradient_descent_arrives(case: problems.LossCase, name: str) -> None:
    """``eta = 1/(3 x smoothness of the envelope)``, the step size of Theorem 4."""
    population, users = problems.small_population(case, name, nu=1.0, seed=problems.generator(35))
    expected = equilibrium(population)
    eta = 1 / (3 * population.regularizer.envelope_smoothness(len(users)))
    rho = expected.rho + 2 * unit(population.model.dim, seed=36)
    theta, distances = torch.zeros_like(expected.theta), []
    while len(distances) < 300 and norm(rho - expected.rho) > 5e-7:
        theta = population.solve(rho, theta).theta
        rho = rho - eta * population.report(rho, theta).sum(dim=0)
        distances.append(norm(rho - expected.rho))
    assert distances[-1] <= 1e-6
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(distances))
    torch.testing.assert_close(theta, expected.theta, rtol=0, atol=1e-5)


def test_a_target_just_out_of_reach_is_not_taken_for_the_limit() -> None:
    """From the honest optimum Newton's method lands on the target, a kink, and is stuck there."""
    coupling = SmoothL2(lam=18.146)
    scenario = draw_scenario("least-squares", coupling, seed=1, users=4, points=20)
    target = scenario.target
    limit = reachable_limit(scenario.honest, target, radius=3 * coupling.lam)
    assert limit.converged
    assert not limit.reached
    assert torch.linalg.vector_norm(limit.rho - target) > 1e-3
    torch.testing.assert_close(
        torch.linalg.vector_norm(limit.gradient), torch.tensor(54.438).double()
    )
