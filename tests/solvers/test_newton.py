from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import Softmax
from pfl_flower.objective.models import Linear
from pfl_flower.solvers import conjugate_gradients
from tests.support import problems
from tests.support.problems import draw


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


def by(diagonal: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda residual: residual / diagonal


class TestConjugateGradients:
    def system(self, seed: int, condition: float) -> tuple[Tensor, Tensor]:
        source = problems.generator(seed)
        basis, _ = torch.linalg.qr(problems.normal(20, 20, seed=source))
        spectrum = torch.logspace(0, torch.tensor(condition).log10().item(), 20).double()
        return basis @ torch.diag(spectrum) @ basis.T, problems.normal(20, seed=source)

    @pytest.mark.parametrize("condition", [1.0, 100.0, 1e5])
    def test_equals_a_dense_solve(self, condition: float) -> None:
        matrix, target = self.system(1, condition)
        got = conjugate_gradients.conjugate_gradients(
            lambda v: matrix @ v, target, by(matrix.diagonal()), rtol=1e-12
        )
        torch.testing.assert_close(got, torch.linalg.solve(matrix, target), rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize("rtol", [0.3, 1e-2, 1e-6])
    def test_stops_at_its_tolerance(self, rtol: float) -> None:
        matrix, target = self.system(2, 1e4)
        products = []

        def product(vector: Tensor) -> Tensor:
            products.append(1)
            return matrix @ vector

        got = conjugate_gradients.conjugate_gradients(
            product, target, by(matrix.diagonal()), rtol=rtol
        )
        error = torch.linalg.vector_norm(target - matrix @ got)
        assert error <= rtol * torch.linalg.vector_norm(target) * (1 + 1e-6)
        exact = conjugate_gradients.conjugate_gradients(
            lambda v: matrix @ v, target, by(matrix.diagonal()), rtol=1e-12
        )
        assert torch.linalg.vector_norm(target - matrix @ exact) < error
        assert len(products) < 60

    def test_gives_up(self) -> None:
        matrix, target = self.system(3, 1e5)
        products = []

        def product(vector: Tensor) -> Tensor:
            products.append(1)
            return matrix @ vector

        conjugate_gradients.conjugate_gradients(
            product, target, by(matrix.diagonal()), rtol=1e-12, max_iterations=3
        )
        assert len(products) == 3

    def test_diagonal_is_solved_at_once(self) -> None:
        diagonal = torch.tensor([1.0, 10.0, 1e6]).double()
        target = torch.ones(3).double()
        got = conjugate_gradients.conjugate_gradients(
            lambda v: diagonal * v, target, by(diagonal), rtol=1e-12, max_iterations=1
        )
        torch.testing.assert_close(got, 1 / diagonal, rtol=1e-14, atol=0)

    def test_nothing_to_solve(self) -> None:
        zero = torch.zeros(3).double()
        got = conjugate_gradients.conjugate_gradients(lambda v: v, zero, by(zero + 1), rtol=0.1)
        assert torch.equal(got, zero)


FORMS = {"diagonal": (0, 0), "mean block": (0, 2000), "blocks": (2000, 2000), "points": (2000, 0)}
"""Of preconditioners, by the largest block for each class and the largest for their mean."""


def limited(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let preconditioners take a form whatever the sizes."""
    block, mean = FORMS[form]
    monkeypatch.setattr(conjugate_gradients, "BLOCK_LIMIT", block)
    monkeypatch.setattr(conjugate_gradients, "MEAN_LIMIT", mean)
    if form == "points":
        monkeypatch.setattr(
            conjugate_gradients, "_inverse_blocks", conjugate_gradients._inverse_from_points
        )


class TestPreconditioner:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("case", problems.LOSSES)
    def test_it_is_positive_definite_and_a_linear_map(
        self, case: problems.LossCase, form: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limited(form, monkeypatch)
        exact = form != "diagonal"
        source = problems.generator(8)
        loss = problems.local_loss(case, users=1, points=30, inputs=4, seed=source)
        theta = problems.normal(loss.model.dim, seed=source)
        made = conjugate_gradients.Preconditioner.at(loss, theta, 2.0)
        columns = torch.stack([made(e) for e in torch.eye(len(theta)).double()])
        torch.testing.assert_close(columns, columns.T, rtol=1e-5, atol=1e-8)
        assert float(torch.linalg.eigvalsh((columns + columns.T) / 2).min()) > 0
        hessian = loss.hessian(theta[None])[0] + 2.0 * torch.eye(len(theta)).double()
        spectrum = torch.linalg.eigvals(columns @ hessian).real
        assert float(spectrum.max() / spectrum.min()) < (60 if exact else 1e6)
        if case.outputs > 1 and exact:
            same = torch.ones_like(theta)
            torch.testing.assert_close(hessian @ made(same), same, rtol=1e-6, atol=0)
        if case.outputs == 1 and exact:
            torch.testing.assert_close(
                columns @ hessian, torch.eye(len(theta)).double(), atol=1e-4, rtol=0
            )

    @pytest.mark.parametrize(
        ("points", "limit", "expected"), [(30, 9, "mean"), (5, 9, "each"), (30, 2000, "each")]
    )
    def test_blocks_are_each_class_s_own_or_their_mean(
        self, points: int, limit: int, expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ten features: more than the limit, for which five points are few, or fewer than it."""
        monkeypatch.setattr(conjugate_gradients, "BLOCK_LIMIT", limit)
        source, case = problems.generator(11), problems.LossCase("softmax", outputs=3)
        loss = problems.local_loss(case, users=1, points=points, inputs=10, seed=source)
        theta, rows = problems.normal(30, seed=source), problems.normal(3, 10, seed=source)
        made = conjugate_gradients.Preconditioner.at(loss, theta, 2.0)
        hessian = loss.hessian(theta[None])[0].view(3, 10, 3, 10)
        blocks = torch.stack([hessian[a, :, a] for a in range(3)]) + 2.0 * torch.eye(10).double()
        if expected == "mean":
            blocks = blocks.mean(dim=0, keepdim=True).expand(3, -1, -1)
        assert made.blocks is not None
        wanted = torch.linalg.solve(blocks, rows[..., None])[..., 0]
        torch.testing.assert_close(made.blocks(rows), wanted, rtol=1e-3, atol=1e-4)

    def test_blocks_make_an_ill_scaled_softmax_easy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Features of unlike, correlated scales: the diagonal alone takes many more products."""
        source = problems.generator(9)
        case = problems.LossCase("softmax", outputs=4)
        mixing = torch.diag(torch.logspace(-2, 1, 12).double()) @ problems.normal(
            12, 12, seed=source
        )
        features = problems.normal(1, 200, 12, seed=source) @ mixing
        labels = problems.draw_labels(case, 1, 200, seed=source)
        loss = LocalLoss.build(Linear(12, 4), Softmax(), features, labels)
        theta = 0.1 * problems.normal(48, seed=source)
        target = problems.normal(48, seed=source)
        counts = []
        for form in FORMS:
            limited(form, monkeypatch)
            made = conjugate_gradients.Preconditioner.at(loss, theta, 2.0)
            products = 0

            def product(vector: Tensor) -> Tensor:
                nonlocal products
                products += 1
                return loss.hessian_product(theta[None], vector[None])[0] + 2.0 * vector

            got = conjugate_gradients.conjugate_gradients(product, target, made, rtol=1e-8)
            assert torch.linalg.vector_norm(product(got) - target) < 1e-6
            counts.append(products)
        assert 2 * counts[1] < counts[0]
        # Each class's own block is nearer than their mean; inverted from points it is the same one,
        # to single precision, which may cost a product or two.
        assert counts[2] <= counts[1]
        assert counts[3] <= counts[2] + 2
