"""Whatever the data: a finite point, its residual, and whether that met the tolerance.

Residuals are recomputed here in long double precision, from the equations and not the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray

import pfl_flower
from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import LOSSES, LeastSquares
from pfl_flower.objective.models import Linear
from pfl_flower.objective.regularizers import SquaredL2
from pfl_flower.objective.table import REGULARIZERS
from pfl_flower.objective.user_data import UserData
from pfl_flower.solvers import conjugate_gradients, newton, user_batch
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.solvers.equilibrium_lbfgs import joint_minimum
from pfl_flower.solvers.population import Population
from pfl_flower.solvers.proximal import ProximalSolver, Solution
from pfl_flower.transport.node_metrics import LARGEST, METRICS, NodeMetrics

Long = NDArray[np.longdouble]
EPS = 2.0**-53
TOLERANCE = 1e-10
POINTS, INPUTS = 6, 4


@dataclass
class Case:
    """One user's points, and the strengths of what holds its model."""

    features: NDArray[np.float64]
    weights: NDArray[np.float64]
    lam: float = 1.0
    nu: float = 0.0
    far: float = 1.0


def case(kind: str) -> Case:
    features = np.random.default_rng(0).standard_normal((POINTS, INPUTS))
    ones = np.ones(POINTS)
    alone = np.vstack([features[:1], np.zeros_like(features[1:])])
    return {
        "ordinary": Case(features, ones),
        "one point of 1e8, lam 1e-3": Case(1e8 * alone, ones, 1e-3),
        "one point of 1e8, lam 1e-9": Case(1e8 * alone, ones, 1e-9),
        "one point of 1e8, lam 1": Case(1e8 * alone, ones),
        "equal points of 1e4, lam 1e-12": Case(1e4 * features[:1].repeat(POINTS, 0), ones, 1e-12),
        "a weight of 1e100": Case(features, np.r_[1e100, ones[1:]]),
        "a weight of 1e300": Case(features, np.r_[1e300, ones[1:]]),
        "weights of 1e-300": Case(features, 1e-300 * ones),
        "no weight": Case(features, 0 * ones),
        "no features": Case(0 * features, ones),
        "features of 1e20": Case(1e20 * features, ones),
        "features of 1e160": Case(1e160 * features, ones),
        "features of 1e300": Case(1e300 * features, ones),
        "features of 1e-160": Case(1e-160 * features, ones),
        "columns of 1e-100 to 1e100": Case(features * np.logspace(-100, 100, INPUTS), ones),
        "points of 1e-8 to 1e8": Case(features * np.logspace(-8, 8, POINTS)[:, None], ones),
        "lam 1e-300": Case(features, ones, 1e-300),
        "lam 1e300": Case(features, ones, 1e300),
        "nu 1e300": Case(features, ones, nu=1e300),
        "rho of 1e200": Case(features, ones, far=1e200),
        "rho of 1e307": Case(features, ones, far=1e307),
    }[kind]


KINDS = [
    "one point of 1e8, lam 1e-3",
    "one point of 1e8, lam 1e-9",
    "one point of 1e8, lam 1",
    "equal points of 1e4, lam 1e-12",
    "a weight of 1e100",
    "a weight of 1e300",
    "weights of 1e-300",
    "no weight",
    "no features",
    "features of 1e20",
    "features of 1e160",
    "features of 1e300",
    "features of 1e-160",
    "columns of 1e-100 to 1e100",
    "points of 1e-8 to 1e8",
    "lam 1e-300",
    "lam 1e300",
    "nu 1e300",
    "rho of 1e200",
    "rho of 1e307",
]


class Reference:
    """The first-order residual of one user's answer, and what rounding may add to it in double."""

    def __init__(self, loss: str, coupling: str, one: Case, labels: NDArray, rho: NDArray) -> None:
        self.loss, self.coupling, self.case = loss, coupling, one
        self.labels, self.rho = labels, rho.astype(np.longdouble)

    def slopes(self, scores: Long) -> Long:
        if self.loss == "least-squares":
            return scores - self.labels[:, None]
        if self.loss == "logistic":
            margins = self.labels[:, None] * scores
            small = np.exp(-np.abs(margins))
            return -self.labels[:, None] * np.where(margins >= 0, small, 1) / (1 + small)
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        rates = powers / powers.sum(axis=1, keepdims=True)
        rates[np.arange(len(rates)), self.labels] -= 1
        return rates

    def __call__(self, theta: NDArray) -> tuple[float, float]:
        x, weights = (a.astype(np.longdouble) for a in (self.case.features, self.case.weights))
        lam, nu = np.longdouble(self.case.lam), np.longdouble(self.case.nu)
        theta = theta.astype(np.longdouble)
        matrix = theta.reshape(-1, INPUTS)
        gradient = (weights[:, None] * self.slopes(x @ matrix.T)).T @ x
        z = self.rho - theta
        r = np.sqrt((z * z).sum())
        pull = {
            "squared-l2": lambda: 2 * lam * z,
            "l2": lambda: lam * z / r if r > 0 else 0 * z,
            "smooth-l2": lambda: lam * z / np.sqrt(1 + r * r),
        }[self.coupling]()
        total = gradient.reshape(-1) + 2 * nu * theta
        norm = np.sqrt((total * total).sum())
        kinked = self.coupling == "l2" and r == 0
        left = max(norm - lam, 0) if kinked else np.sqrt(((total - pull) ** 2).sum())
        long = np.sqrt((x * x).sum(axis=1))
        size = np.sqrt((theta * theta).sum()) + np.sqrt((self.rho**2).sum())
        largest = 1 + (np.abs(self.labels) if self.loss == "least-squares" else 0)
        terms = (weights * long * (largest + long * size)).sum() + 2 * nu * size
        terms += lam * (size if self.coupling == "squared-l2" else 1 + size / max(r, 1e-300))
        return float(left), float(4 * (POINTS + len(theta)) * EPS * terms)


def solved(loss: str, coupling: str, cases: list[Case]) -> tuple[Solution, list[Reference]]:
    source = np.random.default_rng(1)
    classes = 3 if loss == "softmax" else 1
    labels = {
        "least-squares": source.standard_normal((len(cases), POINTS)),
        "logistic": np.where(source.standard_normal((len(cases), POINTS)) > 0, 1, -1),
        "softmax": source.integers(0, classes, (len(cases), POINTS)),
    }[loss]
    first = cases[0]
    model = Linear(INPUTS, classes)
    local = LocalLoss.build(
        model,
        LOSSES[loss](),
        torch.from_numpy(np.stack([one.features for one in cases])),
        torch.from_numpy(labels),
        weights=torch.from_numpy(np.stack([one.weights for one in cases])),
        nu=first.nu,
    )
    rho = first.far * source.standard_normal(model.dim)
    solver = ProximalSolver(local, REGULARIZERS.load(coupling)(lam=first.lam))
    start = torch.zeros((len(cases), model.dim), dtype=torch.float64)
    answers = [Reference(loss, coupling, one, labels[n], rho) for n, one in enumerate(cases)]
    return solver.solve(torch.from_numpy(rho), start), answers


def judge(solution: Solution, answers: list[Reference]) -> list[tuple[float, float]]:
    """Hold every user's answer against the contract; return true residuals and their rounding."""
    assert bool(solution.theta.isfinite().all())
    assert not bool(solution.residual.isnan().any())
    assert torch.equal(solution.converged, solution.residual <= TOLERANCE)
    found = []
    for user, answer in enumerate(answers):
        said = float(solution.residual[user])
        true, rounding = answer(solution.theta[user].numpy())
        assert abs(said - true) <= rounding or (said == np.inf and true > 1e150)
        if bool(solution.converged[user]):
            assert true <= TOLERANCE + rounding
        found.append((true, rounding))
    return found


@pytest.mark.parametrize("coupling", list(REGULARIZERS))
@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("path", ["alone", "together", "conjugate gradients"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_solve_answers_with_its_residual(
    kind: str, path: str, loss: str, coupling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = case(kind), case("ordinary")
    cases = [bad]
    if path == "together":
        # One such user among others whom nothing ails but what all share: lam, nu and rho.
        monkeypatch.setattr(user_batch, "LEAST_USERS", 4)
        good = Case(good.features, good.weights, bad.lam, bad.nu, bad.far)
        cases = [good, bad, good, good]
    if path == "conjugate gradients":
        monkeypatch.setattr(newton, "DENSE_LIMIT", 0)
    solution, answers = solved(loss, coupling, cases)
    found = judge(solution, answers)
    if path == "together" and bad.lam == bad.far == 1 and bad.nu == 0:
        assert bool(solution.converged[[0, 2, 3]].all())
    if loss == "least-squares" and coupling == "squared-l2":
        # One linear system: what is left is rounding, whichever way it was solved.
        assert all(true <= TOLERANCE + rounding for true, rounding in found)


@pytest.mark.parametrize("kind", ["ordinary", "equal points of 1e4, lam 1e-12", "no features"])
def test_one_user_and_many_agree_on_what_converged(kind: str) -> None:
    alone, _ = solved("least-squares", "squared-l2", [case(kind)])
    together, _ = solved("least-squares", "squared-l2", [case(kind)] * user_batch.LEAST_USERS)
    assert bool(alone.converged.all())
    assert bool(together.converged.all())


@pytest.mark.parametrize(
    ("block", "size"), [(2000, 1.0), (2000, 1e20), (2000, 1e160), (5, 1.0), (5, 1e160)]
)
def test_more_than_1500_parameters(
    block: int, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preconditioned by blocks of the features, and by the points' own systems."""
    monkeypatch.setattr(conjugate_gradients, "BLOCK_LIMIT", block)
    features = size * torch.randn(1, 5, 1510, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.tensor([[1, -1, 1, 1, -1]])
    local = LocalLoss.build(Linear(1510, 1), LOSSES["logistic"](), features, labels, nu=0.1)
    rho = torch.zeros(1510, dtype=torch.float64)
    solution = ProximalSolver(local, SquaredL2(lam=1.0)).solve(rho, rho[None])
    assert bool(solution.theta.isfinite().all())
    assert bool(solution.converged.all()) == (size == 1)
    assert not bool(solution.residual.isnan().any())


@pytest.mark.parametrize("size", [0.0, 1e-200, 1e20, 1e160, 1e300])
def test_preconditioners_and_directions_are_numbers(size: float) -> None:
    features = size * torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    local = LocalLoss.build(Linear(4, 1), LeastSquares(), features, torch.ones(1, 5).double())
    zero, target = torch.zeros(4).double(), torch.tensor([1.0, -2.0, 3.0, 4.0]).double()
    kept = conjugate_gradients.Preconditioner.at(local, zero, 0.0 if size == 0 else 1.0)
    curvature = local.hessian_map(zero[None])
    for product in (lambda v: curvature(v[None])[0], torch.zeros_like):
        step = conjugate_gradients.conjugate_gradients(product, target, kept, rtol=1e-3)
        assert bool(step.isfinite().all())
        assert float(step @ target) > 0


EXACT = {
    "ordinary": 1e-14,
    "one point of 1e8, lam 1": 1e-7,
    "one point of 1e8, lam 1e-3": 1e-5,
    "points of 1e-8 to 1e8": 1e-6,
    "features of 1e160": 1e-14,
}
"""How near to the minimiser: the condition of ``[X; (2 lam)^{1/2} I]`` times some rounding."""


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("users", [1, user_batch.LEAST_USERS])
def test_least_squares_end_near_the_exact_solution(kind: str, users: int) -> None:
    """Converged or not; the minimiser is worked out in fractions."""
    solution, answers = solved("least-squares", "squared-l2", [case(kind)] * users)
    first = answers[0]
    x = [[Fraction(value) for value in row] for row in case(kind).features]
    lam = 2 * Fraction(case(kind).lam)
    answer = [Fraction(float(value)) for value in first.labels]
    rho = [Fraction(float(value)) for value in first.rho]
    size = range(INPUTS)
    matrix = [[sum(row[i] * row[j] for row in x) + lam * (i == j) for j in size] for i in size]
    right = [sum(row[i] * y for row, y in zip(x, answer, strict=True)) + lam * rho[i] for i in size]
    for i in size:
        for j in size:
            if j != i:
                share = matrix[j][i] / matrix[i][i]
                matrix[j] = [a - share * b for a, b in zip(matrix[j], matrix[i], strict=True)]
                right[j] -= share * right[i]
    exact = torch.tensor([float(right[i] / matrix[i][i]) for i in size], dtype=torch.float64)
    torch.testing.assert_close(
        solution.theta[0], exact, rtol=EXACT[kind], atol=EXACT[kind] * float(exact.abs().max())
    )


def test_a_factor_that_was_made_with_care_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second solve neither makes it anew nor loses it, for whichever users it is."""
    bad, good = case("one point of 1e8, lam 1e-3"), case("ordinary")
    features = torch.from_numpy(np.stack([good.features, bad.features]))
    source = torch.Generator().manual_seed(1)
    labels = torch.randn(2, POINTS, generator=source, dtype=torch.float64)
    local = LocalLoss.build(Linear(INPUTS, 1), LeastSquares(), features, labels)
    solver = ProximalSolver(local, SquaredL2(lam=1e-3))
    rho, start = torch.ones(INPUTS).double(), torch.zeros(2, INPUTS).double()
    first = solver.solve(rho, start)
    monkeypatch.setattr(torch.linalg, "qr", None)
    assert torch.equal(solver.solve(rho, start).theta, first.theta)
    assert torch.equal(
        solver.select(torch.tensor([1])).solve(rho, start[:1]).theta, first.theta[1:]
    )


@pytest.mark.parametrize("coupling", ["squared-l2", "smooth-l2"])
@pytest.mark.parametrize("loss", ["least-squares", "logistic"])
@pytest.mark.parametrize("size", [1e20, 1e160, 1e300])
def test_an_equilibrium_of_any_data_answers(size: float, loss: str, coupling: str) -> None:
    source = np.random.default_rng(2)
    users = []
    for _ in range(2):
        features = torch.from_numpy(size * source.standard_normal((3, 2)))
        users.append(UserData(features, torch.tensor([1, -1, 1]).to(torch.float64).round()))
    population = Population(
        users,
        model=Linear(2, 1),
        loss=LOSSES[loss](),
        regularizer=REGULARIZERS.load(coupling)(lam=1.0),
        nu=0.1,
    )
    found = equilibrium(population, start=torch.ones(2).double(), max_iterations=3)
    assert bool(found.rho.isfinite().all())
    assert not found.converged
    joint = joint_minimum(population, max_iterations=3)
    assert bool(joint.rho.isfinite().all())


@pytest.mark.parametrize("size", [1.0, 1e8, 1e160])
@pytest.mark.parametrize("users", [3, user_batch.LEAST_USERS])
def test_a_run_counts_what_missed_and_does_not_pass(size: float, users: int) -> None:
    """One user of several holds few points of such a size: least squares, squared l2."""
    source = np.random.default_rng(3)
    data = [(source.standard_normal((6, 3)), source.standard_normal(6)) for _ in range(users)]
    data[1] = (size * data[1][0][:2], data[1][1][:2])
    result = pfl_flower.run(
        data=data,
        regularizer="squared-l2",
        lam=1e-3,
        local_solver="exact",
        strategic_users="none",
        rounds=2,
    )
    missed = int(np.nansum(result.rounds["unconverged"]))
    assert missed == (0 if size == 1 else 2)
    assert [check.passed for check in result.checks if check.name == "unconverged_total"] == [
        missed == 0
    ]
    assert result.passed == (missed == 0)


def test_an_infinite_residual_is_told_as_the_largest_that_may_be_told() -> None:
    said = RecordDict({METRICS: NodeMetrics(worst_residual=math.inf, unconverged=3).pack()})
    heard = NodeMetrics.unpack(said, [0, 1, 2])
    assert (heard.worst_residual, heard.unconverged, heard.absurd) == (LARGEST, 3, 0)
