import math

import pytest
import torch

from pfl_flower.attacks.equivalence import (
    gradient_from_model,
    honest_sum,
    model_from_gradient,
    nearest_gradient,
)
from pfl_flower.attacks.reachable import reachable_limit
from pfl_flower.objective.losses import LeastSquares, Logistic, Softmax
from pfl_flower.objective.models import Linear, augment
from pfl_flower.objective.regularizers import L2, SmoothL2, SquaredL2, UnattainableGradientError
from pfl_flower.objective.user_data import UserData
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.solvers.population import Population
from pfl_flower.support.seeding import generator

LOSSES = [LeastSquares(), Logistic(), Softmax()]
BALLS = [L2(lam=1.3), SmoothL2(lam=1.3)]


def name(value):
    return type(value).__name__


def norm(vector):
    return float(torch.linalg.vector_norm(vector))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed, *shape), dtype=torch.float64)


def unit(dim, seed):
    return torch.nn.functional.normalize(normal(dim, seed=seed), dim=0)


def honest(loss, regularizer, users=4, points=20, inputs=4, nu=0.05):
    outputs = 3 if isinstance(loss, Softmax) else 1
    data = []
    for n in range(users):
        draws = generator(n, "labels")
        labels = torch.randint(3, (points,), generator=draws)
        if isinstance(loss, LeastSquares):
            labels = torch.randn(points, generator=draws, dtype=torch.float64)
        elif isinstance(loss, Logistic):
            labels = torch.where(labels > 0, 1, -1)
        data.append(UserData(augment(normal(points, inputs - 1, seed=n)), labels))
    model = Linear(inputs, outputs)
    return Population(data, model=model, loss=loss, regularizer=regularizer, nu=nu)


def far_target(population, centre, seed=1, factor=1.5):
    """A target at least ||rho*_honest|| away; its classes sum to 0, as every equilibrium's do."""
    away = normal(population.model.dim, seed=seed).view(population.model.outputs, -1)
    away = away - away.mean(0) if len(away) > 1 else away
    length = factor * max(1.0, norm(centre))
    return centre + length * torch.nn.functional.normalize(away.reshape(-1), dim=0)


@pytest.mark.parametrize("size", [0.0, 1e-8, 0.3, 1.0, 1.2999])
@pytest.mark.parametrize(
    "regularizer", [SquaredL2(lam=1.3), *BALLS], ids=lambda r: type(r).__name__
)
def test_model_attains_the_gradient(regularizer, size):
    target, gradient = normal(5, seed=1), size * unit(5, seed=2)
    made = model_from_gradient(regularizer, target, gradient, epsilon=0.0)
    assert made.residual <= 1e-12
    if isinstance(regularizer, SquaredL2):  # Proposition 3
        torch.testing.assert_close(made.value, target - gradient / 2.6, rtol=0, atol=1e-14)
    if isinstance(regularizer, L2):
        assert torch.equal(made.value, target)
        return
    leaf = target.clone().requires_grad_()
    regularizer.value(leaf, made.value).backward()
    torch.testing.assert_close(leaf.grad, gradient, rtol=0, atol=1e-12)


def test_squared_l2_attains_any_gradient():
    target, gradient = normal(5, seed=1), 1e6 * unit(5, seed=2)
    assert model_from_gradient(SquaredL2(lam=0.1), target, gradient).residual <= 1e-8


def test_l2_attains_its_sphere():
    target, gradient = normal(5, seed=1), 1.3 * unit(5, seed=2)
    made = model_from_gradient(L2(lam=1.3), target, gradient)
    # A few roundings of five entries.
    assert made.residual <= 1e-14
    assert norm(made.value - target) == pytest.approx(1.0)
    assert float((target - made.value) @ gradient) == pytest.approx(1.3)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("shortfall", [0.0, 1e-9, 5e-3])
def test_smooth_l2_approximates_its_boundary_to_epsilon(epsilon, shortfall):
    target, gradient = normal(5, seed=1), (1.3 - shortfall) * unit(5, seed=2)
    made = model_from_gradient(SmoothL2(lam=1.3), target, gradient, epsilon=epsilon)
    assert made.residual == pytest.approx(max(0.0, epsilon - shortfall), abs=1e-10)
    reached = SmoothL2(lam=1.3).grad_rho(target, made.value)
    assert norm(reached - gradient) == pytest.approx(made.residual)
    assert norm(target - made.value) <= 1.1 * math.sqrt(1.3 / (2 * epsilon))


@pytest.mark.parametrize("regularizer", BALLS, ids=name)
def test_gradients_outside_the_ball_are_refused(regularizer):
    with pytest.raises(UnattainableGradientError):
        model_from_gradient(regularizer, torch.zeros(5), 1.31 * unit(5, seed=2).float())
    if isinstance(regularizer, SmoothL2):
        with pytest.raises(UnattainableGradientError):
            model_from_gradient(
                regularizer, torch.zeros(5).double(), 1.3 * unit(5, seed=2), epsilon=0.0
            )


@pytest.mark.parametrize("loss", LOSSES, ids=name)
@pytest.mark.parametrize("regularizer", [SquaredL2(lam=0.5), SmoothL2(lam=200.0)], ids=name)
def test_the_chain_holds_rho_at_the_target(loss, regularizer):
    population = honest(loss, regularizer)
    centre = equilibrium(population).rho
    target = far_target(population, centre)
    scale = 1 + norm(target)
    assert norm(target - centre) >= norm(centre)
    others = honest_sum(population, target)
    assert others.residual <= population.tolerance
    gradient = -others.value
    # Lemma 3: a gradient attack that has converged to g holds rho at the target ...
    held = equilibrium(population, attack_gradient=gradient)
    assert held.converged and norm(held.rho - target) <= 1e-6 * scale
    # ... and so does the model that attains g (Proposition 3), from a cold start ...
    made = model_from_gradient(regularizer, target, gradient)
    held = equilibrium(population, attack_models=made.value[None])
    assert held.converged and norm(held.rho - target) <= 1e-6 * scale
    # ... from which the gradient comes back, with everyone else's sum cancelled.
    others = honest_sum(population, held.rho).value
    back = gradient_from_model(regularizer, held.rho, made.value, others)
    assert back.residual <= 1e-8 * (1 + norm(gradient))
    torch.testing.assert_close(back.value, gradient, rtol=1e-6, atol=1e-8)
    # The residual is about rho: elsewhere it is not small.
    others = honest_sum(population, centre).value
    assert gradient_from_model(regularizer, centre, made.value, others).residual > 1e-2
    # No attack, and a model that agrees with the honest optimum, fail the same check.
    for models in (None, centre[None]):
        idle = equilibrium(population, attack_models=models)
        assert norm(idle.rho - target) > 0.1 * scale


def test_nearest_gradient_at_the_kink_is_the_projection():
    rho, wanted = normal(5, seed=1), 0.4 * unit(5, seed=2)
    assert torch.equal(nearest_gradient(L2(lam=1.0), rho, rho, wanted), wanted)
    far = nearest_gradient(L2(lam=1.0), rho, rho, 10 * wanted)
    torch.testing.assert_close(far, wanted / 0.4, rtol=1e-14, atol=0)
    assert torch.equal(nearest_gradient(SmoothL2(), rho, rho, wanted), torch.zeros_like(rho))


def test_honest_sum_is_the_gradient_of_the_envelope():
    population = honest(Logistic(), SmoothL2(lam=2.0))
    rho, step = normal(4, seed=3), 1e-5

    def envelope(point):
        theta = population.solve(point, point.expand(population.size, -1)).theta
        return float((population.value(theta) + population.regularizer.value(point, theta)).sum())

    total = honest_sum(population, rho).value
    for axis, basis in enumerate(torch.eye(4, dtype=torch.float64)):
        slope = (envelope(rho + step * basis) - envelope(rho - step * basis)) / (2 * step)
        assert float(total[axis]) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=name)
@pytest.mark.parametrize("regularizer", BALLS, ids=name)
def test_out_of_reach_the_limit_is_partially_honest(loss, regularizer):
    population = honest(loss, regularizer)
    centre = equilibrium(population).rho
    target = far_target(population, centre, factor=3.0)
    limit = reachable_limit(population, target)
    assert limit.converged and not limit.reached
    # Proposition 2: a full gradient towards the target, which the honest sum cancels.
    assert norm(limit.gradient) == pytest.approx(1.3, rel=1e-7)
    away = limit.rho - target
    assert float(away @ limit.gradient) / (norm(away) * norm(limit.gradient)) >= 1 - 1e-12
    others = honest_sum(population, limit.rho).value
    assert norm(others + limit.gradient) <= 1e-7
    # It lies between where the users would be without the attack and the target.
    assert norm(away) < norm(centre - target)
    # It is the minimiser of F + lam ||rho - target||: no small move lowers that.
    for seed in range(10):
        moved = limit.rho + 1e-3 * unit(len(target), seed)
        change = _pulled(population, moved, target) - _pulled(population, limit.rho, target)
        assert change > 0


def _pulled(population, rho, target):
    theta = population.solve(rho, rho.expand(population.size, -1)).theta
    envelope = (population.value(theta) + population.regularizer.value(rho, theta)).sum()
    return float(envelope) + population.regularizer.radius * norm(rho - target)


def test_the_limit_is_where_the_counter_gradient_attack_ends():
    population = honest(LeastSquares(), SmoothL2(lam=1.3))
    target = far_target(population, equilibrium(population).rho, factor=3.0)
    limit = reachable_limit(population, target)
    eta = 1 / (3 * population.regularizer.envelope_smoothness(population.size))
    rho, theta = torch.zeros_like(target), torch.zeros(population.size, len(target)).double()
    last = torch.zeros_like(target)
    for _ in range(500):
        theta = population.solve(rho, theta).theta
        others = population.report(rho, theta).sum(dim=0)
        report = population.regularizer.project((rho - target) / eta - last)  # Equation 6
        last, rho = others, rho - eta * (others + report)
    assert norm(rho - limit.rho) <= 1e-8 * (1 + norm(limit.rho))
    torch.testing.assert_close(report, limit.gradient, rtol=0, atol=1e-8)


def test_a_boundary_model_comes_as_close_to_the_limit_as_epsilon_asks():
    population = honest(LeastSquares(), SmoothL2(lam=1.3))
    target = far_target(population, equilibrium(population).rho, factor=3.0)
    limit = reachable_limit(population, target)
    misses = []
    for epsilon in (1e-2, 1e-4, 1e-6):  # Lemma 15
        made = model_from_gradient(
            population.regularizer, limit.rho, limit.gradient, epsilon=epsilon
        )
        held = equilibrium(population, attack_models=made.value[None])
        assert held.converged
        misses.append(norm(held.rho - limit.rho) / epsilon)
    assert max(misses) <= 2 * min(misses) and max(misses) < 10


@pytest.mark.parametrize("regularizer", [SquaredL2(lam=1.0), L2(lam=500.0)], ids=name)
def test_a_target_in_reach_is_its_own_limit(regularizer):
    population = honest(Logistic(), regularizer)
    target = far_target(population, equilibrium(population).rho)
    limit = reachable_limit(population, target)
    assert limit.reached and limit.converged and limit.residual == 0
    assert torch.equal(limit.rho, target)
    torch.testing.assert_close(-limit.gradient, honest_sum(population, target).value)


def test_a_coalition_reaches_farther():
    population = honest(Logistic(), SmoothL2(lam=1.3))
    target = far_target(population, equilibrium(population).rho, factor=3.0)
    alone = reachable_limit(population, target)
    three = reachable_limit(population, target, radius=3 * 1.3)
    assert norm(three.rho - target) < norm(alone.rho - target)
    with pytest.raises(ValueError, match="radius"):
        reachable_limit(population, target, radius=0.0)


def test_a_model_at_the_kink_amounts_to_whatever_gradient_is_left():
    """L2 with theta_spade = target: every gradient of the ball is its subgradient there."""
    population = honest(Logistic(), L2(lam=500.0))
    target = far_target(population, equilibrium(population).rho)
    others = honest_sum(population, target).value
    made = model_from_gradient(population.regularizer, target, -others)
    assert torch.equal(made.value, target) and made.residual == 0
    back = gradient_from_model(population.regularizer, target, made.value, others)
    assert torch.equal(back.value, -others) and back.residual == 0
    weak = gradient_from_model(L2(lam=0.1), target, made.value, others)
    assert weak.residual == pytest.approx(norm(others) - 0.1)
