from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pfl_flower.objective.regularizers import L2, SmoothL2, SquaredL2
from pfl_flower.objective.user_data import UserData
from tests.support import problems, reference
from tests.support.problems import STRENGTHS, build, close


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
    [
        (1e-300, torch.float64),
        (1e-160, torch.float64),
        (1e150, torch.float64),
        (1e-40, torch.float32),
        (1e-20, torch.float32),
        (1e15, torch.float32),
    ],
)
@pytest.mark.parametrize("name", problems.REGULARIZERS)
def test_every_gradient_lies_in_grad(name: str, size: float, dtype: torch.dtype) -> None:
    """An honest user's report is never refused, even where ``||z||^2`` loses its digits."""
    regularizer, z = build(name), size * torch.tensor([0.6, -0.8], dtype=dtype)
    assert bool(regularizer.contains(regularizer.grad_rho(z, torch.zeros_like(z))))


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1e150, torch.float64), (1e160, torch.float64), (1e300, torch.float64), (1e25, torch.float32)],
)
@pytest.mark.parametrize("name", problems.REGULARIZERS)
def test_end_of_the_range(name: str, size: float, dtype: torch.dtype) -> None:
    """Where ``||z||^2`` overflows, gradients and projections still have their direction."""
    regularizer, unit = build(name), torch.tensor([0.6, -0.8], dtype=dtype)
    z, zero = size * unit, torch.zeros_like(unit)
    assert not torch.isnan(regularizer.value(z, zero))
    assert torch.isfinite(regularizer.hessian_product(z, zero, unit)).all()
    if math.isfinite(regularizer.radius):
        close(regularizer.grad_rho(z, zero), 1.5 * unit, rtol=1e-6)
        close(regularizer.project(z), 1.5 * unit, rtol=1e-6)
    else:
        assert torch.equal(regularizer.project(z), z)


@pytest.mark.parametrize("r", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", problems.REGULARIZERS)
def test_profiles_have_the_derivatives_they_name(name: str, r: float) -> None:
    """``phi' = r w`` and ``phi'' = second``, by autograd, also where two forms of phi meet."""
    regularizer, at = build(name, 1.3), torch.tensor(r, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(regularizer.profile(at), at, create_graph=True)
    close(slope, r * regularizer.weight(at), rtol=1e-14)
    bend = torch.autograd.grad(slope, at)[0] if slope.requires_grad else torch.zeros_like(at)
    close(bend, regularizer.second(at), rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", problems.REGULARIZERS)
def test_a_users_bits_hang_on_nobody_else(name: str, dtype: torch.dtype) -> None:
    """torch computes the last few numbers of a tensor by other code than the rest."""
    regularizer = build(name, 1.3)
    for seed in range(40):
        r = (3 * problems.normal(1003, seed=problems.generator(seed)).abs()).to(dtype)
        for what in (regularizer.profile, regularizer.weight, regularizer.second):
            whole = what(r)
            for part in (slice(0, 201), slice(201, 402), slice(402, 1003), slice(998, 1003)):
                assert torch.equal(what(r[part].clone()), whole[part]), (seed, what)


@pytest.mark.parametrize("lam", [0.0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", problems.REGULARIZERS)
def test_strength_must_be_positive(name: str, lam: float) -> None:
    with pytest.raises(ValueError, match="positive finite"):
        build(name, lam)


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
