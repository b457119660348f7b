from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfl_flower.population import UserData
from pfl_flower.regularizers import (
    L2,
    REGULARIZERS,
    Regularizer,
    SmoothL2,
    SquaredL2,
    UnattainableGradientError,
)
from tests import problems, reference

STRENGTHS = [0.01, 1.0, 30.0]


def build(name: str, lam: float = 1.5) -> Regularizer:
    return REGULARIZERS[name](lam=lam)


def close(got: Tensor, expected: Tensor, rtol: float = 1e-7, atol: float = 1e-7) -> None:
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


def gradients(lam: float, count: int, seed: int, dim: int = 4) -> Tensor:
    """Directions at random, norms from deep inside a ball of radius lam to far outside."""
    source = problems.generator(seed)
    direction = problems.normal(count, dim, seed=source)
    direction /= torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    return direction * lam * 10 ** problems.normal(count, 1, seed=source)


@pytest.mark.parametrize("lam", STRENGTHS)
@pytest.mark.parametrize("name", problems.REGULARIZERS)
class TestDerivatives:
    def test_value(self, name: str, lam: float) -> None:
        source = problems.generator(0)
        rho, theta = problems.normal(6, 4, seed=source), problems.normal(6, 4, seed=source)
        expected = [reference.coupling(name, lam, r, t) for r, t in zip(rho, theta, strict=True)]
        close(build(name, lam).value(rho, theta), torch.stack(expected), rtol=1e-13)

    @pytest.mark.parametrize("distance", [1e-2, 1.0, 30.0])
    def test_gradient_in_rho_and_theta(self, name: str, lam: float, distance: float) -> None:
        source, regularizer = problems.generator(1), build(name, lam)
        rho = problems.normal(4, seed=source)
        theta = rho + distance * problems.normal(4, seed=source)
        got = regularizer.grad_rho(rho, theta)
        step = 1e-4 * distance
        in_rho = reference.central_difference(lambda r: regularizer.value(r, theta), rho, step)
        in_theta = reference.central_difference(lambda t: regularizer.value(rho, t), theta, step)
        scale = lam * max(distance, 1.0)
        close(got / scale, in_rho / scale)
        close(-got / scale, in_theta / scale)

    @pytest.mark.parametrize("distance", [1e-2, 1.0, 30.0])
    def test_hessian_product(self, name: str, lam: float, distance: float) -> None:
        source, regularizer = problems.generator(2), build(name, lam)
        rho, direction = problems.normal(4, seed=source), problems.normal(4, seed=source)
        theta = rho + distance * problems.normal(4, seed=source)
        hessian = reference.central_difference(
            lambda r: regularizer.grad_rho(r, theta), rho, 1e-4 * distance
        )
        scale = lam * max(1.0, 1 / distance)
        got = regularizer.hessian_product(rho, theta, direction)
        close(got / scale, hessian @ direction / scale)
        identity = torch.eye(4, dtype=torch.float64)
        close(regularizer.hessian_product(rho, theta, identity) / scale, hessian / scale)

    def test_batch_equals_loop(self, name: str, lam: float) -> None:
        source, regularizer = problems.generator(3), build(name, lam)
        rho, theta, v = (problems.normal(2, 3, 4, seed=source) for _ in range(3))
        theta[0, 1] = rho[0, 1]
        for method, arguments in [
            (regularizer.value, (rho, theta)),
            (regularizer.grad_rho, (rho, theta)),
            (regularizer.hessian_product, (rho, theta, v)),
            (regularizer.project, (v,)),
            (regularizer.contains, (v,)),
            (regularizer.attain, (rho, regularizer.project(v) * 0.9)),
        ]:
            batched = method(*arguments)
            for i in range(2):
                for j in range(3):
                    single = method(*(argument[i, j] for argument in arguments))
                    assert batched[i, j].shape == single.shape
                    torch.testing.assert_close(batched[i, j], single, rtol=1e-14, atol=0)

    def test_one_rho_for_many_theta(self, name: str, lam: float) -> None:
        source, regularizer = problems.generator(4), build(name, lam)
        rho, theta = problems.normal(4, seed=source), problems.normal(5, 4, seed=source)
        close(regularizer.grad_rho(rho, theta), regularizer.grad_rho(rho.expand(5, 4), theta))
        assert regularizer.value(rho, theta).shape == (5,)


@pytest.mark.parametrize("name", ["squared-l2", "smooth-l2"])
def test_hessian_at_zero_distance(name: str) -> None:
    regularizer, rho = build(name), torch.tensor([0.3, -0.2], dtype=torch.float64)
    hessian = reference.central_difference(lambda r: regularizer.grad_rho(r, rho), rho)
    close(regularizer.hessian_product(rho, rho, torch.eye(2, dtype=torch.float64)), hessian)


def test_l2_at_its_kink() -> None:
    rho, v = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    regularizer = L2(lam=2.0)
    assert regularizer.value(rho, rho) == 0
    assert torch.equal(regularizer.grad_rho(rho, rho), torch.zeros(2))
    assert torch.isfinite(regularizer.hessian_product(rho, rho, v)).all()
    assert regularizer.kink == 2.0
    slope = (regularizer.value(rho + 1e-3 * v, rho) - regularizer.value(rho, rho)) / 5e-3
    assert slope.item() == pytest.approx(regularizer.kink, rel=1e-3)


@pytest.mark.parametrize("name", ["squared-l2", "smooth-l2"])
def test_no_kink(name: str) -> None:
    assert build(name).kink == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-160, 1e-40, 1e-20, 1e-8, 1e8, 1e15])
@pytest.mark.parametrize("name", problems.REGULARIZERS)
def test_extreme_distances(name: str, size: float, dtype: torch.dtype) -> None:
    regularizer = build(name)
    unit = torch.tensor([0.6, -0.8], dtype=dtype)
    zero, z = torch.zeros(2, dtype=dtype), size * unit
    for got in [
        regularizer.value(z, zero),
        regularizer.grad_rho(z, zero),
        regularizer.hessian_product(z, zero, unit),
    ]:
        assert torch.isfinite(got).all()
    gradient = regularizer.grad_rho(z, zero)
    if size >= 1e-8:
        expected = reference.gradient(
            lambda r: reference.coupling(name, 1.5, r, torch.zeros(2, dtype=torch.float64)),
            size * torch.tensor([0.6, -0.8], dtype=torch.float64),
        )
        close(gradient.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1e-300, torch.float64), (1e-160, torch.float64), (1e150, torch.float64)]
    + [(1e-40, torch.float32), (1e-20, torch.float32), (1e15, torch.float32)],
)
@pytest.mark.parametrize("name", problems.REGULARIZERS)
def test_every_gradient_lies_in_grad(name: str, size: float, dtype: torch.dtype) -> None:
    """An honest user's report is never refused, even where ``||z||^2`` loses its digits."""
    regularizer, z = build(name), size * torch.tensor([0.6, -0.8], dtype=dtype)
    assert bool(regularizer.contains(regularizer.grad_rho(z, torch.zeros_like(z))))


@pytest.mark.parametrize("size", [1e150, 1e300])
@pytest.mark.parametrize("name", problems.REGULARIZERS)
def test_no_nan_at_the_end_of_the_range(name: str, size: float) -> None:
    regularizer, z = build(name), torch.tensor([0.6 * size, -0.8 * size], dtype=torch.float64)
    zero = torch.zeros_like(z)
    assert not torch.isnan(regularizer.value(z, zero))
    assert not torch.isnan(regularizer.grad_rho(z, zero)).any()
    assert not torch.isnan(regularizer.hessian_product(z, zero, zero + 1)).any()
    assert not torch.isnan(regularizer.project(z)).any()


@pytest.mark.parametrize("lam", [0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", problems.REGULARIZERS)
def test_strength_must_be_positive(name: str, lam: float) -> None:
    with pytest.raises(ValueError, match="positive finite"):
        build(name, lam)


@pytest.mark.parametrize("lam", STRENGTHS)
@pytest.mark.parametrize("name", problems.REGULARIZERS)
class TestGrad:
    def test_radius(self, name: str, lam: float) -> None:
        """GRAD is the closure of the gradients: they stay inside and come as near as one likes."""
        regularizer = build(name, lam)
        z = gradients(1.0, 200, seed=5)
        norms = torch.linalg.vector_norm(regularizer.grad_rho(z, torch.zeros(4)), dim=-1)
        assert regularizer.radius == reference.grad_radius(name, lam)
        assert bool((norms <= regularizer.radius * (1 + 1e-12)).all())
        far = torch.full((1,), 1e6, dtype=torch.float64)
        reached = regularizer.grad_rho(far, torch.zeros(1)).item()
        assert reached >= min(regularizer.radius, 1e6 * lam) * (1 - 1e-9)

    def test_contains(self, name: str, lam: float) -> None:
        regularizer = build(name, lam)
        unit = torch.tensor([0.6, -0.8], dtype=torch.float64)
        outside = math.isinf(regularizer.radius)
        for factor, expected in [
            (0.0, True),
            (0.5, True),
            (1.0, True),
            (1 + 0.5e-6, True),
            (1 + 2e-6, outside),
            (2.0, outside),
            (1e100, outside),
        ]:
            assert bool(regularizer.contains(factor * lam * unit)) == expected, factor
        assert bool(regularizer.contains(1.05 * lam * unit, rtol=0.1))
        assert bool(regularizer.contains((1 + 1e-9) * lam * unit, rtol=1e-12)) == outside
        for bad in (math.nan, math.inf, -math.inf):
            assert not bool(regularizer.contains(torch.tensor([0.0, bad])))

    def test_contains_judges_rows_alone(self, name: str, lam: float) -> None:
        rows = torch.tensor([[0.0, 0.0], [0.0, math.nan], [0.3 * lam, 0.0], [math.inf, 0.0]])
        assert build(name, lam).contains(rows).tolist() == [True, False, True, False]

    def test_projection_equals_an_optimiser(self, name: str, lam: float) -> None:
        for g in gradients(1.0, 8, seed=6):
            expected = lam * reference.project(name, 1.0, g)
            close(build(name, lam).project(lam * g) / lam, expected / lam, atol=1e-6, rtol=1e-6)

    def test_attain(self, name: str, lam: float) -> None:
        """``grad_rho R(rho, attain(rho, g)) = g``, or theta = rho inside the ball of a kink."""
        regularizer = build(name, lam)
        rho = problems.normal(4, seed=problems.generator(7))
        direction = gradients(1.0, 1, seed=8)[0]
        direction /= torch.linalg.vector_norm(direction)
        for factor in (0.0, 1e-12, 1e-3, 0.5, 0.9, 1 - 1e-5, 1 - 5e-7, 1 - 1e-9, 1 - 1e-12, 1.0, 7.0):
            g = factor * lam * direction
            norm = torch.linalg.vector_norm(g)
            if not bool(regularizer.attains(norm)):
                assert factor >= 1.0
                continue
            theta = regularizer.attain(rho, g)
            assert torch.isfinite(theta).all()
            if factor == 0.0 or factor * lam < regularizer.kink * (1 - 1.5e-6):
                assert torch.equal(theta, rho)
            else:
                atol = 1.5e-6 if regularizer.kink else 1e-9
                close(regularizer.grad_rho(rho, theta) / lam, g / lam, rtol=0, atol=atol)

    def test_attain_refuses_what_is_outside(self, name: str, lam: float) -> None:
        regularizer, rho = build(name, lam), torch.zeros(3, 2)
        inside = torch.tensor([[0.1 * lam, 0.0]] * 3)
        outside = inside.clone()
        outside[1, 0] = math.nan
        if math.isfinite(regularizer.radius):
            outside[1, 0] = 1.01 * lam
        assert torch.isfinite(regularizer.attain(rho, inside)).all()
        with pytest.raises(UnattainableGradientError):
            regularizer.attain(rho, outside)


def test_sphere_is_attained_by_l2_alone() -> None:
    rho, g = torch.zeros(2, dtype=torch.float64), torch.tensor([3.0, 4.0], dtype=torch.float64)
    close(L2(lam=5.0).grad_rho(rho, L2(lam=5.0).attain(rho, g)), g, rtol=1e-14)
    with pytest.raises(UnattainableGradientError, match="< 5"):
        SmoothL2(lam=5.0).attain(rho, g)
    with pytest.raises(UnattainableGradientError, match="<= 5"):
        L2(lam=5.0).attain(rho, 1.001 * g)


def test_attain_keeps_its_digits_near_the_sphere() -> None:
    for gap in (1e-3, 1e-6, 1e-9):
        g = torch.tensor([1 - gap], dtype=torch.float64)
        exact_gap = 1 - g.item()
        distance = -SmoothL2(lam=1.0).attain(torch.zeros(1, dtype=torch.float64), g).item()
        expected = g.item() / math.sqrt(exact_gap * (2 - exact_gap))
        assert distance == pytest.approx(expected, rel=1e-14)


VECTORS = st.lists(st.floats(-50, 50), min_size=3, max_size=3)


@pytest.mark.parametrize("name", problems.REGULARIZERS)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(g=VECTORS, h=VECTORS, lam=st.floats(1e-2, 60))
def test_projection_laws(name: str, g: list[float], h: list[float], lam: float) -> None:
    regularizer = build(name, lam)
    a, b = torch.tensor(g, dtype=torch.float64), torch.tensor(h, dtype=torch.float64)
    pa, pb = regularizer.project(a), regularizer.project(b)
    assert bool(regularizer.contains(pa, rtol=1e-14))
    close(regularizer.project(pa), pa, rtol=1e-14, atol=0)
    distance, moved = torch.linalg.vector_norm(a - b), torch.linalg.vector_norm(pa - pb)
    assert moved <= distance * (1 + 1e-12) + 1e-12
    assert (a - pa) @ (pb - pa) <= 1e-10 * (1 + a @ a)
    if bool(regularizer.contains(a, rtol=0.0)):
        close(pa, a, rtol=1e-15, atol=0)


def test_projection_never_returns_its_argument() -> None:
    for name in REGULARIZERS:
        g = torch.zeros(2)
        build(name).project(g).add_(1.0)
        assert torch.equal(g, torch.zeros(2)), name


class TestEnvelope:
    """The envelope's Hessian, by differences of ``sum g_n`` at exact local solutions."""

    def largest_eigenvalue(
        self,
        name: str,
        users: list[UserData],
        case: problems.LossCase,
        rho: Tensor,
        *,
        lam: float,
        step: float = 1e-4,
    ) -> float:
        population = problems.population(users, case, name, lam=lam, nu=1e-3)

        def gradient(point: Tensor) -> Tensor:
            solution = population.solve(point, point.expand(len(users), -1).contiguous())
            assert bool((solution.residual <= 1e-8).all())
            return population.report(point, solution.theta).sum(dim=0)

        hessian = reference.central_difference(gradient, rho, step)
        return float(torch.linalg.eigvalsh((hessian + hessian.T) / 2).max())

    @pytest.mark.parametrize("case", problems.LOSSES)
    @pytest.mark.parametrize("name", ["squared-l2", "smooth-l2"])
    def test_never_above_the_constant(self, name: str, case: problems.LossCase) -> None:
        source = problems.generator(9)
        for lam in (0.1, 3.0):
            users = problems.small_users(case, sizes=[4, 6, 6], seed=source)
            rho = problems.normal(2 * case.outputs, seed=source)
            largest = self.largest_eigenvalue(name, users, case, rho, lam=lam)
            assert 0 < largest <= build(name, lam).envelope_smoothness(3) * (1 + 1e-6)

    @pytest.mark.parametrize("name", ["squared-l2", "smooth-l2"])
    def test_reached_by_stiff_losses(self, name: str) -> None:
        """Stiff users who agree with rho keep z near 0, where R is most curved."""
        source, case = problems.generator(10), problems.LossCase("least-squares")
        rho = problems.normal(2, seed=source)
        features = [100 * problems.normal(5, 2, seed=source) for _ in range(4)]
        users = [UserData(x, x @ rho) for x in features]
        largest = self.largest_eigenvalue(name, users, case, rho, lam=0.7, step=1e-3)
        constant = build(name, 0.7).envelope_smoothness(4)
        assert 0.99 * constant < largest <= constant * (1 + 1e-6)

    def test_constants(self) -> None:
        assert SquaredL2(lam=0.5).envelope_smoothness(10) == 10.0
        assert SmoothL2(lam=0.5).envelope_smoothness(10) == 5.0
        assert L2(lam=0.5).envelope_smoothness(10) == math.inf
