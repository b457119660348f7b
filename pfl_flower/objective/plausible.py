"""Which vectors a report may be: a ball about 0, and the projection on it.

=================== ============================================= =================================
radius              where                                         what it means
=================== ============================================= =================================
that of GRAD(rho)   reports are a regulariser's gradients         the paper's check
``inf``             reports are gradients of L_n, without a limit whatever is finite is plausible
a limit             the same, with one                            no gradient is longer than it
0                   nobody's report is to count                   the one report there is says 0
=================== ============================================= =================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pfl_flower.objective.vectors import copied, finite, length

EDGE = 1e-6
"""Relative width of the edge of GRAD, within which a norm counts as its radius.

A projection ends on the sphere but for rounding: 3e-16 of the radius in double, and in single
precision up to 3e-7 for the 7,850 parameters of MNIST.
"""

FAR_OUT = 2.0**64
"""Of gradients that many radii long, or infinitely, the projection takes a shorter multiple."""


class Plausible(Protocol):
    """A convex set of reports, any leading batch axes."""

    @property
    def radius(self) -> float:
        """Of the smallest ball about 0 that holds it."""
        ...

    def contains(self, gradient: Tensor, rtol: float = EDGE) -> Tensor:
        """Whether each report is finite and in it, up to ``rtol`` of its radius."""
        ...

    def project(self, gradient: Tensor) -> Tensor:
        """Return the nearest vectors of it."""
        ...


@dataclass(frozen=True)
class Ball:
    """The ball ``B(0, radius)``; all of R^d if that is infinite, the origin alone if it is 0.

    >>> import torch
    >>> Ball(1.0).project(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    >>> Ball(0.0).project(torch.tensor([3.0, 4.0])), bool(Ball(0.0).contains(torch.ones(2)))
    (tensor([0., 0.]), False)
    """

    radius: float

    def contains(self, gradient: Tensor, rtol: float = EDGE) -> Tensor:
        """Whether each gradient is finite and lies in the ball, up to ``rtol`` of its radius.

        Of many parameters in single precision up to ``eps sqrt(d)`` if that is more: what one
        processor takes for the sphere another, which sums squares in another order, does not. At
        623,000 parameters that was 3e-5.

        Returns
        -------
        Tensor
            Booleans of shape ``(...)``.
        """
        if math.isinf(self.radius):
            return finite(gradient)
        norm = length(gradient)[..., 0]
        wider = torch.finfo(norm.dtype).eps * math.sqrt(gradient.shape[-1])
        return finite(gradient) & (norm <= self.radius * (1 + max(rtol, wider)))

    def project(self, gradient: Tensor) -> Tensor:
        """Orthogonal projection: ``g min(1, radius/||g||)``."""
        if math.isinf(self.radius):
            return copied(gradient)
        if self.radius == 0:
            return torch.zeros_like(gradient)
        norm = length(gradient)
        # Far outside, the length may be infinite; in a unit of a power of two the digits are equal.
        far = norm / FAR_OUT > 2 * self.radius
        # Elsewhere than on the CPU a look takes longer than what it spares.
        if not far.is_cpu or bool(far.any()):
            gradient = torch.where(far, gradient / FAR_OUT, gradient)
            norm = torch.where(far, length(gradient), norm)
        # Inside the ball the factor is 1 to the bit, and nothing changes.
        return gradient * (self.radius / norm.clamp(min=self.radius))
