from __future__ import annotations

import torch
from torch import Tensor

from pfl_flower.solvers.equilibrium import _line_search, _Point


class Uphill:
    """A function whose steps halve the gradient and raise the value, or lower it."""

    def __init__(self, rise: float) -> None:
        self.rise = rise

    def at(self, rho: Tensor, theta: Tensor) -> _Point:
        return point(100.0 + self.rise, 0.5)


def point(value: float, gradient: float) -> _Point:
    one = torch.ones(1, dtype=torch.float64)
    return _Point(one, one[None], value * one[0], gradient * one, 0.0)


def test_a_step_that_raises_the_value_is_refused_whatever_its_gradient() -> None:
    step = torch.ones(1, dtype=torch.float64)
    assert _line_search(Uphill(1.0), point(100.0, 1.0), step) is None  # type: ignore[arg-type]
    assert _line_search(Uphill(0.0), point(100.0, 1.0), step) is not None  # type: ignore[arg-type]
