from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfl_flower import newton
from tests import problems
from tests.problems import draw


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    """Powers of ten between ``10^low`` and ``10^high``."""
    return st.floats(low, high).map(lambda exponent: 10**exponent)


@pytest.mark.parametrize("name", problems.REGULARIZERS)
@pytest.mark.parametrize("case", problems.LOSSES)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10**6),
    points=st.integers(1, 30),
    inputs=st.integers(1, 6),
    lam=log_uniform(-3, 3),
    nu=log_uniform(-4, 1),
    size=log_uniform(-1, 1),
    far=log_uniform(-1, 2),
)
def test_any_problem_converges(
    case: problems.LossCase,
    name: str,
    seed: int,
    points: int,
    inputs: int,
    lam: float,
    nu: float,
    size: float,
    far: float,
) -> None:
    solution = draw(
        case,
        name,
        seed,
        users=1,
        points=points,
        inputs=inputs,
        lam=lam,
        nu=nu,
        size=size,
        far=far,
    ).solve()
    assert solution.residual.item() <= 1e-10, solution.iterations
    assert bool(solution.converged.all())


@pytest.mark.parametrize("far", [1.0, 30.0])
@pytest.mark.parametrize("nu", [0.0, 1e-3, 0.1])
@pytest.mark.parametrize("name", problems.REGULARIZERS)
@pytest.mark.parametrize("case", problems.LOSSES[1:])
def test_long_steps_over_flat_losses(
    case: problems.LossCase, name: str, nu: float, far: float
) -> None:
    """Large features saturate the sigmoid: Newton's full step then overshoots by far."""
    for seed, lam in ((0, 0.03), (1, 1.0), (2, 0.03)):
        solution = draw(
            case, name, seed, users=1, inputs=2, lam=lam, nu=nu, size=6.0, far=far
        ).solve()
        assert bool((solution.residual <= 1e-10).all()), (seed, lam, solution)


@pytest.mark.parametrize("name", ["l2", "smooth-l2"])
@pytest.mark.parametrize("case", problems.LOSSES)
def test_stops_where_rounding_stops_it(case: problems.LossCase, name: str) -> None:
    """No digits are left to gain below the rounding of the gradient: further systems are waste."""
    problem = draw(case, name, seed=11, nu=1e-3, size=100.0)
    solution = problem.solve(tolerance=1e-13, max_iterations=100)
    assert bool((solution.residual <= 1e-9).all())
    assert bool((solution.iterations < 100).all()), solution.iterations


@pytest.mark.parametrize(
    ("name", "case", "seed", "lam"),
    [
        ("l2", problems.LossCase("logistic"), 37, 0.003),
        ("smooth-l2", problems.LossCase("logistic"), 53, 0.03),
        ("smooth-l2", problems.LossCase("softmax", outputs=3), 28, 0.3),
        ("smooth-l2", problems.LossCase("softmax", outputs=3), 41, 0.003),
    ],
)
def test_hessian_that_vanishes_at_the_start(
    name: str, case: problems.LossCase, seed: int, lam: float
) -> None:
    """Without nu, saturated points and a far rho leave no curvature; the minimiser still exists."""
    solution = draw(
        case, name, seed, users=1, points=2, inputs=1, lam=lam, nu=0.0, size=2.0, far=20.0
    ).solve()
    assert solution.residual.item() <= 1e-10


class TestConjugateGradients:
    def system(self, seed: int, condition: float) -> tuple[Tensor, Tensor]:
        source = problems.generator(seed)
        basis, _ = torch.linalg.qr(problems.normal(20, 20, seed=source))
        spectrum = torch.logspace(0, torch.tensor(condition).log10().item(), 20).double()
        return basis @ torch.diag(spectrum) @ basis.T, problems.normal(20, seed=source)

    @pytest.mark.parametrize("condition", [1.0, 100.0, 1e5])
    def test_equals_a_dense_solve(self, condition: float) -> None:
        matrix, target = self.system(1, condition)
        got = newton.conjugate_gradients(
            lambda v: matrix @ v, target, matrix.diagonal(), rtol=1e-12
        )
        torch.testing.assert_close(got, torch.linalg.solve(matrix, target), rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize("rtol", [0.3, 1e-2, 1e-6])
    def test_stops_at_its_tolerance(self, rtol: float) -> None:
        matrix, target = self.system(2, 1e4)
        products = []

        def product(vector: Tensor) -> Tensor:
            products.append(1)
            return matrix @ vector

        got = newton.conjugate_gradients(product, target, matrix.diagonal(), rtol=rtol)
        error = torch.linalg.vector_norm(target - matrix @ got)
        assert error <= rtol * torch.linalg.vector_norm(target) * (1 + 1e-6)
        exact = newton.conjugate_gradients(
            lambda v: matrix @ v, target, matrix.diagonal(), rtol=1e-12
        )
        assert torch.linalg.vector_norm(target - matrix @ exact) < error
        assert len(products) < 60

    def test_gives_up(self) -> None:
        matrix, target = self.system(3, 1e5)
        products = []

        def product(vector: Tensor) -> Tensor:
            products.append(1)
            return matrix @ vector

        newton.conjugate_gradients(product, target, matrix.diagonal(), rtol=1e-12, max_iterations=3)
        assert len(products) == 3

    def test_diagonal_is_solved_at_once(self) -> None:
        diagonal = torch.tensor([1.0, 10.0, 1e6]).double()
        target = torch.ones(3).double()
        got = newton.conjugate_gradients(
            lambda v: diagonal * v, target, diagonal, rtol=1e-12, max_iterations=1
        )
        torch.testing.assert_close(got, 1 / diagonal, rtol=1e-14, atol=0)

    def test_nothing_to_solve(self) -> None:
        zero = torch.zeros(3).double()
        got = newton.conjugate_gradients(lambda v: v, zero, zero + 1, rtol=0.1)
        assert torch.equal(got, zero)
