from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfl_flower.objective.regularizers import L2, SmoothL2, UnattainableGradientError
from pfl_flower.objective.table import REGULARIZERS
from pfl_flower.objective.vectors import length
from tests.support import problems, reference
from tests.support.problems import STRENGTHS, build, close


def gradients(lam: float, count: int, seed: int, dim: int = 4) -> Tensor:
    """Directions at random, norms from deep inside a ball of radius lam to far outside."""
    source = problems.generator(seed)
    direction = problems.normal(count, dim, seed=source)
    direction /= torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    return direction * lam * 10 ** problems.normal(count, 1, seed=source)


@pytest.mark.parametrize("name", ["l2", "smooth-l2"])
@pytest.mark.parametrize(
    ("dim", "dtype", "excess", "expected"),
    [
        (10, torch.float32, 5e-7, True),
        (10, torch.float32, 3e-5, False),
        (623_000, torch.float32, 3e-5, True),
        (623_000, torch.float32, 3e-4, False),
        (623_000, torch.float64, 3e-5, False),
    ],
)
def test_the_sphere_is_as_wide_as_lengths_are_uncertain(
    name: str, dim: int, dtype: torch.dtype, excess: float, expected: bool
) -> None:
    """Another processor adds the squares in another order: honest rows may end outside by that."""
    row = torch.zeros(dim, dtype=dtype)
    row[:2] = torch.tensor([0.6, -0.8], dtype=dtype) * (1 + excess)
    assert bool(build(name, 1.0).contains(row)) == expected


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

    def test_projection_is_the_nearest_vector_of_grad(self, name: str, lam: float) -> None:
        for g in lam * gradients(1.0, 8, seed=6):
            projected, radius = build(name, lam).project(g), reference.grad_radius(name, lam)
            # A few roundings of the longest vector.
            assert reference.miss_on_ball(projected - g, projected, radius) <= 1e-14 * length(g)

    def test_attain(self, name: str, lam: float) -> None:
        """``grad_rho R(rho, attain(rho, g)) = g``, or theta = rho inside the ball of a kink."""
        regularizer = build(name, lam)
        rho = problems.normal(4, seed=problems.generator(7))
        direction = gradients(1.0, 1, seed=8)[0]
        direction /= torch.linalg.vector_norm(direction)
        for factor in (
            0.0,
            1e-12,
            1e-3,
            0.5,
            0.9,
            1 - 1e-5,
            1 - 5e-7,
            1 - 1e-9,
            1 - 1e-12,
            1.0,
            7.0,
        ):
            g = factor * lam * direction
            if not bool(regularizer.attains(length(g)).all()):
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


@pytest.mark.parametrize("lam", [1.0, 0.7, 30.0, 1e-3])
@pytest.mark.parametrize("gap", [0.3, 1e-3, 1e-6, 1e-9, 1e-12, 1e-15])
def test_attain_keeps_its_digits_near_the_sphere(gap: float, lam: float) -> None:
    g = torch.tensor([lam * (1 - gap)], dtype=torch.float64)
    distance = -SmoothL2(lam=lam).attain(torch.zeros(1, dtype=torch.float64), g).item()
    # lam^2 - g^2 in fractions: what is rounded, g / lam as well, loses all digits at the last gap.
    square = Fraction(lam) ** 2 - Fraction(g.item()) ** 2
    assert distance == pytest.approx(g.item() / math.sqrt(square), rel=1e-14)


VECTORS = st.lists(st.floats(-50, 50), min_size=3, max_size=3)


@pytest.mark.parametrize("name", problems.REGULARIZERS)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
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
