"""Appendix A and Lemma 32 as tables: each row a function of the paper's, each test an inequality.

Curvatures are exact: blocks of the joint Hessian of LOSS at random points of a ball, whose smallest
and largest eigenvalues there stand for the mu and L of the proofs. Every lemma has a row that lacks
one of its assumptions, and breaks.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from experiments.theory.honest_users import draw_scenario
from experiments.theory.scenario import Scenario
from pfl_flower.attacks.equivalence import honest_sum
from pfl_flower.objective.regularizers import L2, Regularizer, SmoothL2, SquaredL2
from pfl_flower.support.seeding import generator

LAM, NU, USERS, DIM, POINTS = 3.0, 0.2, 3, 3, 40
SMOOTH = [SquaredL2(lam=LAM), SmoothL2(lam=LAM)]
LOSSES = "least-squares", "logistic"
ROUNDED = 1e-9
CASES = [
    pytest.param(loss, one, id=f"{loss}-{type(one).__name__}") for loss in LOSSES for one in SMOOTH
]


def normal(*shape: int, seed: str) -> Tensor:
    return torch.randn(shape, generator=generator(1, "lemmas", seed)).double()


def users(loss: str, coupling: Regularizer, *, nu: float = NU, points: int = POINTS) -> Scenario:
    return draw_scenario(loss, coupling, seed=1, users=USERS, points=points, dim=DIM, nu=nu)


def bend(coupling: Regularizer, z: Tensor) -> Tensor:
    """Hess R_0(z), ``(d, d)``, by automatic differentiation."""
    zero = torch.zeros_like(z)
    return torch.autograd.functional.hessian(lambda z: coupling.value(z, zero).sum(), z)


def joint_hessian(scenario: Scenario, models: Tensor) -> Tensor:
    """Hess LOSS at ``models (1 + N, d)``, rho first: ``((1 + N) d, (1 + N) d)``."""
    size = models.shape[1]
    full = torch.zeros((models.numel(),) * 2).double()
    rho, block = slice(0, size), slice(0, size)
    for user in range(len(models) - 1):
        block = slice((user + 1) * size, (user + 2) * size)
        coupled = bend(scenario.regularizer, models[0] - models[user + 1])
        full[block, block] += scenario.honest.hessian(user, models[user + 1]) + coupled
        full[rho, rho] += coupled
        full[rho, block] -= coupled
        full[block, rho] -= coupled
    return full


def envelope_hessian(joint: Tensor) -> Tensor:
    """Hessian of ``min_theta LOSS(rho, theta)`` from the joint one: its Schur complement."""
    cross, others = joint[:DIM, DIM:], joint[DIM:, DIM:]
    return joint[:DIM, :DIM] - cross @ torch.linalg.solve(others, cross.T)


def responses(scenario: Scenario, rho: Tensor) -> Tensor:
    """theta*(rho), ``(N, d)``."""
    return scenario.honest.solve(rho, rho.repeat(USERS, 1)).theta


def least(matrix: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix)[0])


def most(matrix: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix)[-1])


# --- Assumption 1: what R_0 is asked for ---


@pytest.mark.parametrize(
    ("coupling", "holds"), [(SMOOTH[0], True), (SMOOTH[1], True), (L2(lam=LAM), False)]
)
def test_assumption_1_holds_of_both_smooth_regularisers_and_not_of_l2(
    coupling: Regularizer, holds: bool
) -> None:
    curvatures = [
        bend(coupling, radius * z / z.norm())
        for radius in (0.1, 1.0, 5.0)
        for z in normal(8, DIM, seed="z")
    ]
    lowest = min(map(least, curvatures))
    assert (lowest > 1e-3) == holds
    # Omega(||z||): the slope along a ray does not vanish. Of l2, too.
    far = 1e3 * torch.nn.functional.normalize(normal(8, DIM, seed="far"), dim=1)
    values = torch.stack([coupling.value(z, torch.zeros_like(z)).sum() for z in far])
    assert float(values.min()) >= 0.99 * LAM * 1e3


# --- Lemmas 6 and 7: sums ---


@pytest.mark.parametrize(("loss", "coupling"), CASES)
def test_lemmas_6_and_7_curvatures_of_a_sum_are_between_the_sums(
    loss: str, coupling: Regularizer
) -> None:
    scenario = users(loss, coupling)
    for z in normal(20, DIM, seed="sum"):
        first, second = bend(coupling, z), scenario.honest.hessian(0, z)
        assert least(first + second) >= least(first) + least(second) - ROUNDED
        assert least(first + second) >= least(first) - ROUNDED  # g is convex: Lemma 6
        assert most(first + second) <= most(first) + most(second) + ROUNDED


# --- Lemmas 8, 9, 12: theta*(rho) ---


@pytest.mark.parametrize(("loss", "coupling"), CASES)
def test_lemmas_8_and_12_local_optima_are_lipschitz_in_rho(
    loss: str, coupling: Regularizer
) -> None:
    """Lemma 8's K = L/mu, and a sharper one: L_R / (2 nu + mu_R), everywhere."""
    scenario = users(loss, coupling)
    centres = 2 * normal(5, 2, DIM, seed="rho")
    for rho, other in centres:
        theta, moved = responses(scenario, rho), responses(scenario, other)
        distance = float(torch.linalg.vector_norm(rho - other))
        steps = torch.linalg.vector_norm(theta - moved, dim=1)
        for user in range(USERS):
            # All that the proof asks of mu and L: their values on the segment, here at its ends.
            points = [(rho, theta[user]), (other, moved[user]), (rho, moved[user])]
            bends = [bend(coupling, a - b) for a, b in points]
            own = [scenario.honest.hessian(user, b) for _, b in points]
            steep = max(most(_pair(a, b)) for a, b in zip(bends, own, strict=True))
            mu = min(least(a + b) for a, b in zip(bends, own, strict=True))
            assert float(steps[user]) <= steep / mu * distance * (1 + 1e-6)
        assert float(steps.max()) <= 2 * LAM / (2 * NU) * distance
        if isinstance(coupling, SquaredL2):
            assert float(steps.max()) <= LAM / (NU + LAM) * distance * (1 + 1e-9)


def _pair(coupled: Tensor, own: Tensor) -> Tensor:
    """Hessian of ``f_n(rho, theta_n) = L_n(theta_n) + R(rho, theta_n)``."""
    return torch.cat([torch.cat([coupled, -coupled], 1), torch.cat([-coupled, coupled + own], 1)])


def test_lemma_8_needs_strong_convexity() -> None:
    """min over y of ``y^4/4 - x y`` is at ``cbrt(x)``, which no K bounds near 0."""
    x = torch.logspace(-12, -1, 12, dtype=torch.float64)
    ratios = x ** (1 / 3) / x
    assert float(ratios.max() / ratios.min()) > 1e6


@pytest.mark.parametrize(("loss", "coupling"), CASES)
def test_lemma_9_the_envelope_has_the_partial_gradient(loss: str, coupling: Regularizer) -> None:
    scenario = users(loss, coupling)

    def envelope(rho: Tensor) -> float:
        theta = responses(scenario, rho)
        return float((scenario.honest.value(theta) + coupling.value(rho, theta)).sum())

    rho, step = normal(DIM, seed="nine"), 1e-5
    units = torch.eye(DIM).double()
    slopes = [(envelope(rho + step * e) - envelope(rho - step * e)) / (2 * step) for e in units]
    expected = honest_sum(scenario.honest, rho).value
    torch.testing.assert_close(torch.tensor(slopes).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("loss", "coupling"), CASES)
def test_lemma_9_the_envelope_is_convex(loss: str, coupling: Regularizer) -> None:
    scenario = users(loss, coupling)
    for left, right in 3 * normal(8, 2, DIM, seed="pairs"):
        slope = honest_sum(scenario.honest, left).value - honest_sum(scenario.honest, right).value
        assert float(slope @ (left - right)) >= -ROUNDED


# --- Lemmas 10, 11, 13, 32: LOSS and its envelope ---


@pytest.mark.parametrize("seed", range(5))
def test_lemma_10_a_partial_minimum_keeps_mu(seed: int) -> None:
    root = normal(6, 6, seed=f"ten {seed}")
    joint = root @ root.T + 0.1 * torch.eye(6).double()
    assert least(envelope_hessian(joint)) >= least(joint) - ROUNDED


@pytest.mark.parametrize(("loss", "coupling"), CASES)
def test_lemmas_10_and_13_the_envelope_keeps_mu_and_is_smoother_than_loss(
    loss: str, coupling: Regularizer
) -> None:
    scenario = users(loss, coupling)
    bound = coupling.envelope_smoothness(USERS)
    for rho in 2 * normal(4, DIM, seed="thirteen"):
        joint = joint_hessian(scenario, torch.cat([rho[None], responses(scenario, rho)]))
        envelope = envelope_hessian(joint)
        assert least(envelope) >= least(joint) - ROUNDED > 0
        assert most(envelope) <= most(joint) + ROUNDED
        assert most(envelope) <= bound  # sharper: known in closed form, whatever the data


@pytest.mark.parametrize(("loss", "coupling"), CASES)
def test_lemmas_11_and_32_loss_has_the_curvature_of_equation_32(
    loss: str, coupling: Regularizer
) -> None:
    """kappa = min(nu/2, mu nu / (nu + 2 mu)), mu of R_0 on the ball; L from those of the terms."""
    scenario = users(loss, coupling)
    for models in 2 * normal(6, 1 + USERS, DIM, seed="eleven"):
        joint = joint_hessian(scenario, models)
        bends = [bend(coupling, models[0] - model) for model in models[1:]]
        mu = min(map(least, bends))
        kappa = min(NU / 2, mu * NU / (NU + 2 * mu))
        assert least(joint) >= kappa > 0
        terms = 2 * sum(map(most, bends)) + float(scenario.honest.smoothness().max())
        assert most(joint) <= terms


def test_lemma_32_is_of_all_of_space_with_squared_l2_alone() -> None:
    """Far away smooth l2 is as flat as one likes: locally strongly convex, and no more."""
    far = torch.cat([torch.zeros(1, DIM), 1e4 * torch.ones(USERS, DIM)]).double()
    squared, smooth = (least(joint_hessian(users("logistic", one), far)) for one in SMOOTH)
    assert squared >= min(NU / 2, 2 * LAM * NU / (NU + 4 * LAM))
    assert smooth < 1e-8


@pytest.mark.parametrize("coupling", SMOOTH, ids=lambda one: type(one).__name__)
def test_lemma_11_needs_nu(coupling: Regularizer) -> None:
    """With nu = 0, as in the paper's experiments, and fewer points than dimensions, it is flat."""
    scenario = users("logistic", coupling, nu=0.0, points=DIM // USERS)
    models = normal(1 + USERS, DIM, seed="flat")
    data = [user.features for user in scenario.users]
    data[2] = data[1]  # one direction is left that no query sees
    flat = Scenario(
        loss="logistic",
        users=tuple(
            type(user)(features, user.labels)
            for user, features in zip(scenario.users, data, strict=True)
        ),
        regularizer=coupling,
        nu=0.0,
        seed=1,
    )
    assert abs(least(joint_hessian(flat, models))) < 1e-12
