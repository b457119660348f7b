from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from pfl_flower.objective import losses
from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import LeastSquares
from pfl_flower.objective.models import Linear
from pfl_flower.objective.regularizers import L2, SquaredL2
from pfl_flower.objective.table import REGULARIZERS
from pfl_flower.objective.two_layer import TwoLayer
from pfl_flower.solvers import newton, proximal
from pfl_flower.solvers.proximal import ProximalSolver, proximal_residual
from tests.support import problems, reference
from tests.support.problems import Problem, draw


def test_closed_form_equals_a_dense_solve() -> None:
    problem = draw(problems.LossCase("least-squares"), "squared-l2", seed=1, lam=0.7, nu=0.05)
    assert ProximalSolver(problem.loss, problem.regularizer).closed_form
    solution = problem.solve()
    for user in range(2):
        x, labels = problem.loss.features[user], problem.loss.labels[user]
        system = x.T @ x + 2 * (0.05 + 0.7) * torch.eye(3, dtype=torch.float64)
        expected = torch.linalg.solve(system, x.T @ labels + 2 * 0.7 * problem.rho)
        torch.testing.assert_close(solution.theta[user], expected, rtol=1e-12, atol=1e-12)
    assert bool(solution.converged.all())


@pytest.mark.parametrize("nu", [0.0, 1.0])
@pytest.mark.parametrize("alike", [1.0, 1e4])
def test_features_that_are_nearly_alike_cost_their_condition_and_not_its_square(
    alike: float, nu: float
) -> None:
    """All numbers are whole and the solution known: labels X theta, rho = (1 + nu/lam) theta."""
    source, theta = problems.generator(1), torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64)
    common, own = (torch.randint(-9, 10, (2, 12, size), generator=source) for size in (1, 3))
    features = alike * common.double() + own
    loss = LocalLoss.build(Linear(3, 1), LeastSquares(), features, features @ theta, nu=nu)
    rho = (1 + nu) * theta
    found = ProximalSolver(loss, SquaredL2(lam=1.0)).solve(rho, torch.zeros(2, 3).double()).theta
    # The features' condition is about alike; X^T X, which is only factored, has its square.
    torch.testing.assert_close(found, theta.expand(2, 3), rtol=0, atol=1e-13 * alike)


def test_closed_form_serves_every_rho() -> None:
    """The factor is kept; the right-hand side is not."""
    problem = draw(problems.LossCase("least-squares"), "squared-l2", seed=1)
    solver = ProximalSolver(problem.loss, problem.regularizer)
    first = solver.solve(problem.rho, problem.start)
    second = solver.solve(problem.rho + 1.0, problem.start)
    fresh = ProximalSolver(problem.loss, problem.regularizer)
    assert torch.equal(second.theta, fresh.solve(problem.rho + 1.0, problem.start).theta)
    assert torch.linalg.vector_norm(second.theta - first.theta) > 1e-2


@pytest.mark.parametrize("name", problems.REGULARIZERS)
@pytest.mark.parametrize("case", problems.LOSSES)
def test_closed_form_only_where_it_holds(case: problems.LossCase, name: str) -> None:
    problem = draw(case, name, seed=1)
    expected = case.name == "least-squares" and name == "squared-l2"
    assert ProximalSolver(problem.loss, problem.regularizer).closed_form == expected


class TestScikitLearn:
    """Squared l2 with lam -> 0 is the user's own regularised fit, alpha = 2 nu and C = 1/(2 nu)."""

    @pytest.mark.parametrize("nu", [0.01, 0.5])
    @pytest.mark.parametrize("case", problems.LOSSES)
    def test_the_fit_is_scikit_learns(self, case: problems.LossCase, nu: float) -> None:
        problem = draw(case, "squared-l2", seed=2, users=1, points=40, inputs=4, lam=1e-10, nu=nu)
        solution = problem.solve()
        assert bool(solution.converged.all())
        peer = Ridge(alpha=2 * nu, fit_intercept=False)
        if case.name != "least-squares":
            # Newton's: L-BFGS ends where the loss, rounded, stops falling, and does not say so.
            options = {"solver": "newton-cg", "tol": 1e-12, "max_iter": 1000}
            peer = LogisticRegression(C=1 / (2 * nu), fit_intercept=False, **options)
        features, labels = problem.loss.features[0], problem.loss.labels[0]
        expected = torch.tensor(peer.fit(features.numpy(), labels.numpy()).coef_).reshape(-1)
        slope = reference.gradient(reference.User(case.name, features, labels, nu).loss, expected)
        residual = float(torch.linalg.vector_norm(slope))
        assert residual <= 1e-9
        # The loss curves by 2 nu at least, and so little do residuals and the pull to rho move it.
        pull = 2e-10 * float(torch.linalg.vector_norm(expected - problem.rho))
        gap = float(torch.linalg.vector_norm(solution.theta[0] - expected))
        assert gap <= (residual + 1e-10 + pull) / (2 * nu)


@pytest.mark.parametrize("name", problems.REGULARIZERS)
@pytest.mark.parametrize("case", problems.LOSSES)
class TestEveryPair:
    def test_equals_scipy(self, case: problems.LossCase, name: str) -> None:
        problem = draw(case, name, seed=3)
        solution = problem.solve()
        assert bool(solution.converged.all())
        for user in range(2):
            expected = reference.minimise(
                lambda theta, user=user: problem.objective(case, user, theta), problem.start[user]
            )
            assert torch.linalg.vector_norm(expected - problem.rho) > 1e-2
            # Two residuals, of 1e-9 at most, over a curvature of 2 nu = 0.1 at least.
            torch.testing.assert_close(solution.theta[user], expected, rtol=0, atol=2e-8)

    def test_conjugate_gradients_give_the_same(
        self, case: problems.LossCase, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        problem = draw(case, name, seed=4, inputs=4)
        dense = problem.solve().theta
        calls = []

        def counted(*arguments: object, **options: float) -> Tensor:
            calls.append(1)
            return newton_cg(*arguments, **options)

        newton_cg = newton.conjugate_gradients
        monkeypatch.setattr(newton, "conjugate_gradients", counted)
        monkeypatch.setattr(newton, "DENSE_LIMIT", 0)
        iterative = problem.solve()
        assert bool(calls) == (not ProximalSolver(problem.loss, problem.regularizer).closed_form)
        assert bool(iterative.converged.all())
        torch.testing.assert_close(iterative.theta, dense, rtol=0, atol=1e-8)

    def test_residual_is_the_gradients_norm(
        self, case: problems.LossCase, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever the solver claims, the answer's residual is worked out at the answer."""
        problem = draw(case, name, seed=5)
        monkeypatch.setattr(proximal, "minimise_user", lambda loss, r, rho, start, **_: (start, 0))
        monkeypatch.setattr(
            ProximalSolver, "_normal_equations", lambda self, rho: problem.start.clone()
        )
        solution = problem.solve()
        for user, theta in enumerate(problem.start):
            slope = reference.gradient(lambda t, user=user: problem.objective(case, user, t), theta)
            norm = torch.linalg.vector_norm(slope)
            torch.testing.assert_close(solution.residual[user], norm, rtol=1e-12, atol=1e-12)
        assert not bool(solution.converged.any())

    def test_warm_start_costs_nothing(self, case: problems.LossCase, name: str) -> None:
        problem = draw(case, name, seed=6)
        solver = ProximalSolver(problem.loss, problem.regularizer)
        first = solver.solve(problem.rho, problem.start)
        again = solver.solve(problem.rho, first.theta)
        torch.testing.assert_close(again.theta, first.theta, rtol=0, atol=1e-12)
        if not solver.closed_form:
            assert bool((first.iterations > 0).all())
            assert again.iterations.tolist() == [0, 0]
            assert torch.equal(again.theta, first.theta)

    @pytest.mark.parametrize("inputs", [3, 17])
    def test_a_user_does_not_feel_its_neighbours(
        self, case: problems.LossCase, name: str, inputs: int
    ) -> None:
        problem = draw(case, name, seed=7, users=5, inputs=inputs, points=20)
        together = problem.solve().theta
        for rows in (slice(0, 1), slice(3, 4), slice(1, 4)):
            part = Problem(
                problem.loss.select(rows), problem.regularizer, problem.rho, problem.start[rows]
            )
            alone = part.solve().theta
            if ProximalSolver(problem.loss, problem.regularizer).closed_form:
                torch.testing.assert_close(alone, together[rows], rtol=1e-12, atol=1e-13)
            else:
                assert torch.equal(alone, together[rows])

    @pytest.mark.parametrize("lam", [1e-3, 1.0, 1e3])
    @pytest.mark.parametrize("far", [0.0, 100.0])
    def test_start_does_not_matter(
        self, case: problems.LossCase, name: str, lam: float, far: float
    ) -> None:
        problem = draw(case, name, seed=8, lam=lam, far=far)
        solution = problem.solve()
        assert bool(solution.converged.all())
        near = Problem(
            problem.loss, problem.regularizer, problem.rho, solution.theta + 1e-3
        ).solve()
        torch.testing.assert_close(solution.theta, near.theta, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", problems.REGULARIZERS)
@pytest.mark.parametrize("case", problems.LOSSES[1:])
def test_handicapped_solver_admits_it(case: problems.LossCase, name: str) -> None:
    problem = draw(case, name, seed=9, lam=0.1)
    solution = problem.solve(max_iterations=1)
    assert not bool(solution.converged.any())
    assert bool((solution.residual > 1e-10).all())
    assert solution.iterations.tolist() == [1, 1]
    assert bool(problem.solve().converged.all())


def test_tolerance_decides_what_converged_means() -> None:
    problem = draw(problems.LossCase("logistic"), "smooth-l2", seed=9)
    residual = problem.solve(max_iterations=2).residual.max().item()
    assert 1e-10 < residual
    assert bool(problem.solve(max_iterations=2, tolerance=2 * residual).converged.all())
    assert not bool(problem.solve(max_iterations=2, tolerance=0.5 * residual).converged.all())


def test_solver_refuses_networks() -> None:
    case = problems.LossCase("softmax", outputs=3)
    linear = problems.local_loss(case, seed=problems.generator(1))
    network = LocalLoss.build(
        TwoLayer(inputs=3, outputs=3, hidden=2), linear.loss, linear.features, linear.labels
    )
    with pytest.raises(ValueError, match="linear model"):
        ProximalSolver(network, SquaredL2())


@pytest.mark.parametrize("case", problems.LOSSES)
class TestKink:
    """l2 at theta = rho, where the subdifferential of R is the whole ball."""

    def problem(self, case: problems.LossCase, factor: float) -> Problem:
        """A single user with ``lam = factor ||grad L(rho)||``."""
        base = draw(case, "l2", seed=10, users=1)
        opinion = torch.linalg.vector_norm(base.loss.gradient(base.rho[None])).item()
        return Problem(base.loss, L2(lam=factor * opinion), base.rho, base.start)

    @pytest.mark.parametrize("factor", [1.001, 1.5, 100.0])
    def test_weak_opinion_stays_at_rho(self, case: problems.LossCase, factor: float) -> None:
        problem = self.problem(case, factor)
        solution = problem.solve()
        assert torch.equal(solution.theta[0], problem.rho)
        assert solution.residual.tolist() == [0.0]
        assert bool(solution.converged.all())

    @pytest.mark.parametrize("factor", [0.999, 0.5, 0.01])
    def test_strong_opinion_leaves_rho(self, case: problems.LossCase, factor: float) -> None:
        problem = self.problem(case, factor)
        for start in (problem.start, problem.rho[None]):
            solution = Problem(problem.loss, problem.regularizer, problem.rho, start).solve()
            assert not torch.equal(solution.theta[0], problem.rho)
            assert bool(solution.converged.all())
            slope = reference.gradient(
                lambda theta: problem.objective(case, 0, theta), solution.theta[0]
            )
            assert torch.linalg.vector_norm(slope) <= 1e-10

    @pytest.mark.parametrize("factor", [0.5, 0.9, 1.1])
    def test_certificate_at_rho(self, case: problems.LossCase, factor: float) -> None:
        problem = self.problem(case, factor)
        opinion = problem.regularizer.lam / factor
        got = proximal_residual(
            problem.loss, problem.regularizer, problem.rho, problem.rho[None]
        ).item()
        assert got == pytest.approx(max(0.0, opinion - problem.regularizer.lam), rel=1e-12)

    def test_smooth_couplings_have_no_certificate(self, case: problems.LossCase) -> None:
        problem = self.problem(case, 1.1)
        for name in ("squared-l2", "smooth-l2"):
            regularizer = REGULARIZERS.load(name)(lam=problem.regularizer.lam)
            got = proximal_residual(problem.loss, regularizer, problem.rho, problem.rho[None])
            assert got.item() == pytest.approx(problem.regularizer.lam / 1.1, rel=1e-12)


def test_every_loss_of_the_package_is_in_the_table() -> None:
    assert {row.values[0].name for row in problems.LOSSES} == set(losses.LOSSES)
    assert isinstance(draw(problems.LossCase("logistic"), "l2", 1).loss.model, Linear)
