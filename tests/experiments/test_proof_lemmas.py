"""The lemmas inside the paper's proofs, as tables: descent, concentration, sigmoid, compactness.

What the paper takes from other authors (Theorems 6 to 9) is tried where its lemmas use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import Tensor
from torch.nn.functional import normalize

from experiments.studies.power_law import exponent
from experiments.studies.study import Setting
from experiments.theory.gradient_descent import GradientSequence, descend
from experiments.theory.honest_users import draw_scenario
from experiments.theory.pac import Learner, convex_equilibrium
from experiments.theory.queries import DIM, Queries, axis_queries, cube_queries, normal_queries
from experiments.theory.scenario import Scenario
from pfl_flower.attacks.equivalence import honest_sum
from pfl_flower.objective.regularizers import Regularizer, SmoothL2, SquaredL2
from pfl_flower.solvers.population import Population
from pfl_flower.support.seeding import generator

SMOOTH = [SquaredL2(lam=3.0), SmoothL2(lam=3.0)]
TRIES = 100


def normal(*shape: int, seed: str) -> Tensor:
    return torch.randn(shape, generator=generator(1, "proofs", seed)).double()


def users(coupling: Regularizer) -> Scenario:
    return draw_scenario("logistic", coupling, seed=1, users=3, points=20, dim=3, nu=0.2)


# --- Lemmas 16 to 20: gradient descent under gradients that converge ---


@pytest.mark.parametrize("coupling", SMOOTH, ids=lambda one: type(one).__name__)
def test_lemmas_16_to_18_and_20_descent_under_converging_gradients(coupling: Regularizer) -> None:
    """Lemma 16 in every round, with LOSS^1 of Equation 48; then boundedness and convergence."""
    honest = users(coupling).honest
    limit = 0.3 * normalize(normal(3, seed="limit"), dim=0)
    noise = normal(400, 3, seed="noise")

    def sent(round: int) -> Tensor:
        return limit + 2.0 / round**2 * noise[round % 400]

    eta = 1 / coupling.envelope_smoothness(3)
    run = descend(
        honest, [GradientSequence(sent)], eta=eta, rounds=60, start=4 * normal(3, seed="start")
    )
    values = [_loss_1(honest, rho, limit) for rho in run.rho]
    for t in range(len(run.steps)):
        step = run.honest[t] + run.reports[t, 0]
        excess = run.reports[t, 0] - limit
        bound = -eta / 2 * step @ step + eta * excess @ step
        assert values[t + 1] - values[t] <= float(bound) + 1e-9
    still = descend(
        honest, [GradientSequence(lambda round: limit)], eta=eta, rounds=60, start=run.limit
    ).limit
    distances = torch.linalg.vector_norm(run.rho - still, dim=1)
    assert max(values[1:]) <= values[0] + 1e-9  # Lemma 17, from so far away
    assert float(distances.max()) <= 2 * float(distances[0])  # Lemma 18
    assert float(distances[-10:].max()) < 0.05 < float(distances[0])  # Lemma 20


def _loss_1(honest: Population, rho: Tensor, limit: Tensor) -> float:
    """``inf_theta sum_n L_n(theta_n) + R(rho, theta_n) + rho^T g_inf`` (Equation 48)."""
    theta = honest.solve(rho, rho.repeat(3, 1)).theta
    coupled = honest.regularizer.value(rho, theta)
    return float((honest.value(theta) + coupled).sum() + rho @ limit)


def test_lemma_16_needs_a_small_step() -> None:
    """With ten times 1/L the loss rises at once, which the lemma's bound excludes."""
    coupling = SMOOTH[0]
    honest, zero = users(coupling).honest, torch.zeros(3).double()
    eta = 10 / coupling.envelope_smoothness(3)
    rho = normal(3, seed="large")
    step = honest_sum(honest, rho).value
    rise = _loss_1(honest, rho - eta * step, zero) - _loss_1(honest, rho, zero)
    assert rise > float(-eta / 2 * step @ step)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("power", [0.25, 1.0])
def test_lemma_19_a_contraction_forgets_what_vanishes(alpha: float, power: float) -> None:
    u, seen = 100.0, []
    for t in range(1, 200_000):
        u = alpha * u + t**-power
        seen.append(u)
    # In the end u follows delta / (1 - alpha), the fixed point of what is added.
    assert seen[-1] == pytest.approx(200_000**-power / (1 - alpha), rel=0.01)
    assert seen[-1] < seen[20_000] < seen[2_000]


# --- Lemmas 21 to 24: least squares ---


@pytest.mark.parametrize("seed", range(20))
def test_lemma_21_and_weyl_smallest_eigenvalues_differ_by_less_than_matrices(seed: int) -> None:
    first, second = (normal(5, 8, seed=f"{name} {seed}") for name in "ab")
    first, second = first @ first.T, second @ second.T
    gap = torch.linalg.eigvalsh(first)[0] - torch.linalg.eigvalsh(second)[0]
    assert abs(float(gap)) <= float(torch.linalg.matrix_norm(first - second, 2)) + 1e-12


def shares(points: int, holds: Callable[[Tensor, Tensor], object]) -> float:
    """How often something holds of ``points`` fresh normal queries and their noise."""
    draw = generator(1, "shares", points)
    found = 0
    for _ in range(TRIES):
        queries = normal_queries(points, draw)
        noise = torch.randn(points, generator=draw).double()
        found += bool(holds(queries, noise))
    return found / TRIES


def test_lemma_22_and_corollary_1_the_sample_covariance_keeps_half_its_least_eigenvalue() -> None:
    def half(queries: Tensor, noise: Tensor) -> bool:
        sample = queries.T @ queries / len(queries)
        return float(torch.linalg.eigvalsh(sample)[0]) >= 0.5

    few, some, many = (shares(points, half) for points in (8, 60, 400))
    assert few < 0.1
    assert few < some < many == 1.0


def test_corollary_1_the_deviation_falls_as_the_square_root() -> None:
    sizes, draw = (100, 1000, 10_000), generator(1, "corollary")
    worst = []
    for size in sizes:
        queries = [normal_queries(size, draw) for _ in range(30)]
        gaps = [abs(float(torch.linalg.eigvalsh(q.T @ q / size)[0]) - 1) for q in queries]
        worst.append(max(gaps))
    assert exponent(sizes, worst) == pytest.approx(-0.5, abs=0.1)


def test_lemma_23_and_theorem_8_a_product_of_normals_is_sub_exponential_and_not_sub_gaussian() -> (
    None
):
    """E exp(|XY|/K) <= 2 for K = 8/3, the product of the factors' psi_2 norms sqrt(8/3)."""

    def tail(y: float) -> float:
        # E over X of exp(c |X| y) in closed form, c = 3/8.
        return 2 * math.exp((0.375 * y) ** 2 / 2) * 0.5 * (1 + math.erf(0.375 * y / math.sqrt(2)))

    density = 2 / math.sqrt(2 * math.pi)
    moment, _ = integrate.quad(lambda y: density * math.exp(-y * y / 2) * tail(y), 0, 40)
    assert moment <= 2
    draw = generator(1, "product")
    product = torch.randn((2, 10**6), generator=draw).double().prod(dim=0)
    assert abs(float(product.mean())) < 4e-3  # zero mean: four standard errors
    kurtosis = float((product**4).mean() / (product**2).mean() ** 2)
    assert kurtosis > 6  # 9 exactly; a normal variable's is 3


def test_lemma_24_and_theorem_9_noise_adds_up_as_a_square_root_below_the_proofs_power() -> None:
    """||sum xi Q|| <= B I^(3/4): so it is, and sharper, with I^(1/2)."""

    def length(queries: Tensor, noise: Tensor) -> float:
        return float(torch.linalg.vector_norm(queries.T @ noise))

    bound = 1.5 * math.sqrt(DIM)
    held = [shares(n, lambda q, e, n=n: length(q, e) <= bound * n**0.75) for n in (1, 10, 1000)]
    assert held[0] < held[-1] == 1.0
    lengths: dict[int, list[float]] = {100: [], 1000: [], 10_000: []}
    for size, found in lengths.items():
        shares(size, lambda q, e, found=found: found.append(length(q, e)))
    mean = [float(np.mean(found)) for found in lengths.values()]
    assert exponent([*lengths], mean) == pytest.approx(0.5, abs=0.05)


# --- Lemmas 25 to 29: logistic regression ---


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Delta(a, b) of Definition 6."""
    return (a - b) * (torch.sigmoid(a) - torch.sigmoid(b))


@pytest.mark.parametrize("k", [0.1, 1.0, 5.0])
def test_lemma_25_within_k_the_logistic_distance_is_quadratic(k: float) -> None:
    """With c_k = sigma'(k), which no larger constant replaces."""
    line = torch.linspace(-k, k, 401).double()
    a, b = torch.meshgrid(line, line, indexing="ij")
    slope = float(torch.sigmoid(torch.tensor(k).double()) * torch.sigmoid(torch.tensor(-k)))
    apart = a != b
    ratios = (distance(a, b) / (a - b) ** 2)[apart]
    assert slope * (1 - 1e-6) <= float(ratios.min()) <= slope * (1 + k / 50)


@pytest.mark.parametrize("k", [0.1, 1.0, 5.0])
def test_lemma_26_outside_it_is_linear(k: float) -> None:
    a, b = torch.meshgrid(
        torch.linspace(-60, 60, 2401).double(), torch.linspace(-k, k, 81).double(), indexing="ij"
    )
    slope = float(torch.sigmoid(torch.tensor(k + 1.0)) - torch.sigmoid(torch.tensor(k)))
    assert bool((distance(a, b) >= slope * (a - b).abs() - slope - 1e-12).all())


@pytest.mark.parametrize(("queries", "least"), [(cube_queries, 0.5), (axis_queries, 0.15)])
def test_lemmas_27_and_28_every_direction_is_seen(queries: Queries, least: float) -> None:
    """inf_u mean |Q^T u| stays above half of the expectation's, from some I on; not for d queries.

    The worst u is sought among random ones, axes, and the least eigenvector.
    """
    tried = torch.cat([normalize(normal(500, DIM, seed="u"), dim=1), torch.eye(DIM).double()])

    def worst(points: int, draw: torch.Generator) -> float:
        asked = queries(points, draw)
        flattest = torch.linalg.eigh(asked.T @ asked).eigenvectors[:, :1].T
        return float((torch.cat([tried, flattest]) @ asked.T).abs().mean(dim=1).min())

    draw = generator(1, "seen")
    assert min(worst(10_000, draw) for _ in range(5)) > least
    assert min(worst(300, draw) for _ in range(20)) > least / 2
    assert max(worst(DIM - 1, draw) for _ in range(20)) < 1e-6


def test_lemma_29_answers_separate_models_from_some_number_of_points_on() -> None:
    """sum Delta >= A I min(r, r^2), with one A for all I and r; it fails of d - 1 queries."""
    preferred = 2 * normalize(normal(DIM, seed="dagger"), dim=0)
    directions = normalize(normal(500, DIM, seed="theta"), dim=1)

    def ratio(points: int) -> float:
        asked = cube_queries(points, generator(1, "29", points))
        flattest = torch.linalg.eigh(asked.T @ asked).eigenvectors[:, 0]
        tried = torch.cat([directions, flattest[None], -flattest[None]])
        lowest = math.inf
        for r in (0.01, 0.1, 1.0, 10.0, 100.0):
            found = distance((preferred + r * tried) @ asked.T, asked @ preferred).mean(dim=1)
            lowest = min(lowest, float(found.min()) / min(r, r * r))
        return lowest

    assert min(ratio(points) for points in (300, 1000, 3000)) > 0.02
    assert ratio(DIM - 1) < 1e-9


# --- Lemmas 30 and 31: where optima can be ---


@pytest.mark.parametrize(
    "coupling", [SquaredL2(lam=1.0), SmoothL2(lam=30.0)], ids=lambda one: type(one).__name__
)
def test_lemmas_30_and_31_optima_stay_in_a_compact_that_i_does_not_move(
    coupling: Regularizer,
) -> None:
    learner = Learner.draw("least-squares", normal_queries, Setting(seed=1))
    found = []
    for points in (10, 300, 3000, 30_000):
        population = learner.among_adversaries(coupling, learner.data(points, 0))
        found.append(convex_equilibrium(population, None))
    assert learner.miss(found[0].theta[0]) > 2  # too few points: nothing is promised
    assert all(learner.miss(one.theta[0]) <= 2 for one in found[1:])  # Lemma 30
    lengths = [float(torch.linalg.vector_norm(one.rho)) for one in found[1:]]
    assert max(lengths) <= 1.1 * min(lengths)  # Lemma 31: the compact is the same
