"""The paper's three couplings R(rho, theta), by their profiles phi(||rho - theta||) (Section 2).

=========== ======================= ============= ====================
R           value, z = rho - theta  slope phi'(r) GRAD(rho)
=========== ======================= ============= ====================
SquaredL2   ``lam ||z||^2``         ``2 lam r``   all of R^d
L2          ``lam ||z||``           ``lam``       the ball B(0, lam)
SmoothL2    ``lam sqrt(1+||z||^2)`` ``lam r/h``   the ball B(0, lam)
=========== ======================= ============= ====================
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pfl_flower.objective.plausible import EDGE
from pfl_flower.objective.radial import Regularizer, UnattainableGradientError

__all__ = ["L2", "Regularizer", "SmoothL2", "SquaredL2", "UnattainableGradientError"]


class SquaredL2(Regularizer):
    """``R = lam ||z||^2``: gradient ``2 lam z``, GRAD = R^d (Hanzely et al., Dinh et al. 2020).

    >>> import torch
    >>> SquaredL2(lam=0.5).grad_rho(torch.tensor([3.0]), torch.tensor([1.0]))
    tensor([2.])
    """

    @property
    def radius(self) -> float:
        """GRAD is all of R^d."""
        return math.inf

    def profile(self, r: Tensor) -> Tensor:
        """``lam r^2``."""
        return self.lam * r * r

    def grad_rho(self, rho: Tensor, theta: Tensor) -> Tensor:
        """``2 lam z``, which needs no length."""
        return 2 * self.lam * (rho - theta)

    def weight(self, r: Tensor) -> Tensor:
        """``2 lam``."""
        return torch.full_like(r, 2 * self.lam)

    def second(self, r: Tensor) -> Tensor:
        """``2 lam``."""
        return torch.full_like(r, 2 * self.lam)

    def inverse_slope(self, slope: Tensor) -> Tensor:
        """``r = slope / (2 lam)``."""
        return slope / (2 * self.lam)

    def envelope_smoothness(self, num_users: int) -> float:
        """``2 lam N``: each user's envelope is at most as curved as R itself."""
        return 2 * self.lam * num_users


class L2(Regularizer):
    """``R = lam ||z||``: gradient ``lam z/||z||``, any vector of the ball at 0; GRAD = B(0, lam).

    ``grad_rho`` returns 0 at ``rho = theta``, the subgradient of a user who holds no opinion; the
    honest report there is the projection of ``grad L_n(rho)`` and needs the local loss (see
    ``pfl_flower.solvers.population``).
    """

    @property
    def radius(self) -> float:
        """GRAD is the ball of radius lam."""
        return self.lam

    @property
    def kink(self) -> float:
        """The slope lam."""
        return self.lam

    def profile(self, r: Tensor) -> Tensor:
        """``lam r``."""
        return self.lam * r

    def weight(self, r: Tensor) -> Tensor:
        """``lam / r``, and 0 at ``r = 0``."""
        # Both branches are computed: without the clamp the one that is not taken divides by 0.
        return torch.where(r > 0, self.lam / r.clamp(min=torch.finfo(r.dtype).tiny), 0.0)

    def second(self, r: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(r)

    def attains(self, norm: Tensor) -> Tensor:
        """Return the whole closed ball: the sphere by any ``c > 0``, the inside by ``theta = rho``.

        Norms within ``EDGE`` of lam count as the sphere, where projections in floating point land.
        """
        return norm <= self.lam * (1 + EDGE)

    def inverse_slope(self, slope: Tensor) -> Tensor:
        """``r = 1`` on the sphere (any positive r would do), 0 inside it."""
        return (slope >= self.lam * (1 - EDGE)).to(slope.dtype)

    def envelope_smoothness(self, num_users: int) -> float:
        """``inf``: the constant is the sum of the losses' own, so none holds for all of them."""
        return math.inf


class SmoothL2(Regularizer):
    """``R = lam h``, ``h = sqrt(1 + ||z||^2)``: gradient ``lam z/h``, GRAD = B(0, lam), closed."""

    @property
    def radius(self) -> float:
        """GRAD, a closure, is the closed ball of radius lam."""
        return self.lam

    def profile(self, r: Tensor) -> Tensor:
        """``lam sqrt(1 + r^2)``."""
        return self.lam * _length_with_1(r)

    def weight(self, r: Tensor) -> Tensor:
        """``lam / sqrt(1 + r^2)``."""
        return self.lam / _length_with_1(r)

    def second(self, r: Tensor) -> Tensor:
        """``lam / (1 + r^2)^(3/2)``."""
        return self.lam / _length_with_1(r) ** 3

    def inverse_slope(self, slope: Tensor) -> Tensor:
        """``r = s / sqrt(lam^2 - s^2)``, factored so that it keeps its digits near the sphere."""
        # Near lam the difference of squares has lost what lam - s, exact there, still has.
        # The product of two numbers as large, or as small, as lam need not be one.
        unit = 2.0 ** math.frexp(self.lam)[1]
        s, lam = slope / unit, self.lam / unit
        return s / torch.sqrt((lam - s) * (lam + s))

    def envelope_smoothness(self, num_users: int) -> float:
        """``lam N``: phi'' and w are at most lam."""
        return self.lam * num_users


def _length_with_1(r: Tensor) -> Tensor:
    """``sqrt(1 + r^2)`` of ``r >= 0``, which a large r does not overflow.

    Not by ``torch.hypot``: it computes the last few numbers of a tensor by other code than the
    rest, so that a user's last digit would hang on who else is on its node.
    """
    # Not by clamp, both of whose slopes are 1 where r is.
    beyond = r > 1
    small, large = torch.where(beyond, 1, r), torch.where(beyond, r, 1)
    return large * torch.sqrt(1 + (small / large).square())
