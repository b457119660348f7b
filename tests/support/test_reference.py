"""The references prove themselves: what is wrong is called so, what is unproven raises."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support import reference

W = torch.tensor([3.0, 4.0], dtype=torch.float64)
SIDE = torch.tensor([0.8, -0.6], dtype=torch.float64)
NEAREST = [(10.0, W), (math.inf, W), (5.0, W), (1.0, W / 5), (1e-3, W / 5e3)]


@pytest.mark.parametrize(("radius", "nearest"), NEAREST)
@pytest.mark.parametrize("off", [0.0, 1e-9, 1e-3])
@pytest.mark.parametrize("where", ["shorter", "longer", "aside", "along the sphere"])
def test_a_miss_is_bounded_and_not_overlooked(
    radius: float, nearest: torch.Tensor, off: float, where: str
) -> None:
    size = float(torch.linalg.vector_norm(nearest))
    point = {
        "shorter": (1 - off) * nearest,
        "longer": (1 + off) * nearest,
        "aside": nearest + off * size * SIDE,
        "along the sphere": math.cos(off) * nearest + math.sin(off) * size * SIDE,
    }[where]
    found = reference.miss_on_ball(point - W, point, radius)
    missed = float(torch.linalg.vector_norm(point - nearest))
    # The bound is no smaller than the miss, and on a small ball as large as the way to w makes it.
    assert missed - 1e-14 <= found <= 1e-14 + 10 * missed / min(1.0, size)


def test_the_wrong_end_of_a_ball_is_not_its_nearest() -> None:
    assert reference.miss_on_ball(-W / 5 - W, -W / 5, 1.0) >= 2.0


def test_a_minimiser_that_misses_its_tolerance_is_not_returned() -> None:
    start = torch.zeros(2, dtype=torch.float64)

    def bowl(x: torch.Tensor) -> torch.Tensor:
        return torch.cosh(x - 0.3).sum()

    found = reference.minimise(bowl, start)
    torch.testing.assert_close(found, torch.full_like(start, 0.3), rtol=0, atol=1e-9)
    with pytest.raises(reference.Unproven, match="gradient"):
        reference.minimise(bowl, start, tolerance=-1.0)
