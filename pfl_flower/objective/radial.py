"""The coupling R(rho, theta) between the global model and a personal model (Section 2).

Every regulariser here is radial, ``R(rho, theta) = phi(r)``, ``r = ||z||``, ``z = rho - theta``:

    grad_rho R    = phi'(r)/r * z                       (and grad_theta R = -grad_rho R)
    Hessian       = w I + (phi'' - w) u u^T             with w = phi'(r)/r and u = z/r
    GRAD(rho)     = closure of all grad_rho R(rho, .)   = the ball B(0, sup phi')

A new one states ``phi``, ``w``, ``phi''``, the inverse of ``phi'`` and the radius of GRAD;
batching, membership, projection and the server's check follow.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.objective.plausible import EDGE, Ball
from pfl_flower.objective.vectors import length


class UnattainableGradientError(ValueError):
    """The gradient is outside GRAD(rho), or on a part of its boundary that no theta attains."""


@dataclass(frozen=True)
class Regularizer(ABC):
    """A radial coupling of strength ``lam > 0``.

    All methods accept any leading batch axes; the last axis is the parameter axis ``d``.

    Parameters
    ----------
    lam : float
        Strength of the coupling, dimensionless, positive and finite.

    Raises
    ------
    ValueError
        If ``lam`` is not a positive finite number.
    """

    lam: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a strength for which the problem is not defined."""
        if not (math.isfinite(self.lam) and self.lam > 0):
            raise ValueError(f"lam = {self.lam}: expected a positive finite number")

    @property
    @abstractmethod
    def radius(self) -> float:
        """Radius of GRAD(rho), ``inf`` when every vector of R^d is plausible."""

    @abstractmethod
    def profile(self, r: Tensor) -> Tensor:
        """``phi(r)``, elementwise."""

    @abstractmethod
    def weight(self, r: Tensor) -> Tensor:
        """``w(r) = phi'(r)/r``, elementwise, with a finite value at ``r = 0``."""

    @abstractmethod
    def second(self, r: Tensor) -> Tensor:
        """``phi''(r)``, elementwise."""

    @abstractmethod
    def inverse_slope(self, slope: Tensor) -> Tensor:
        """Return the ``r >= 0`` at which ``phi'(r) = slope``, for attainable slopes."""

    @abstractmethod
    def envelope_smoothness(self, num_users: int) -> float:
        """Smoothness constant of the honest envelope for any convex losses (Appendix F).

        The envelope is ``rho -> min_theta sum_n L_n(theta_n) + R(rho, theta_n)``; ``inf`` when no
        constant holds for all convex losses.
        """

    @property
    def kink(self) -> float:
        """``phi'(0+)``: positive when R is not differentiable at ``rho = theta``."""
        return 0.0

    def attains(self, norm: Tensor) -> Tensor:
        """Whether gradients of these norms are attained by some theta, elementwise."""
        return norm < self.radius

    def value(self, rho: Tensor, theta: Tensor) -> Tensor:
        """``R(rho, theta)``, shape ``(...)`` for inputs of shape ``(..., d)``."""
        return self.profile(length(rho - theta)[..., 0])

    def grad_rho(self, rho: Tensor, theta: Tensor) -> Tensor:
        """``grad_rho R(rho, theta) = w(r) z``, shape ``(..., d)``; 0 at ``rho = theta``."""
        z = rho - theta
        return self.weight(length(z)) * z

    def hessian_product(self, rho: Tensor, theta: Tensor, direction: Tensor) -> Tensor:
        """``(w I + (phi'' - w) u u^T) v``: the second derivative in theta times ``(..., d)``."""
        # At z = 0, where u has no direction, phi'' = w but for l2, and u = 0 will do.
        z = rho - theta
        r = length(z)
        unit = z / r.clamp(min=torch.finfo(r.dtype).tiny)
        weight = self.weight(r)
        along = (self.second(r) - weight) * (unit * direction).sum(dim=-1, keepdim=True)
        return weight * direction + along * unit

    def contains(self, gradient: Tensor, rtol: float = EDGE) -> Tensor:
        """Whether each gradient is finite and lies in GRAD(rho), up to ``rtol`` of its radius.

        Returns
        -------
        Tensor
            Booleans of shape ``(...)``.
        """
        return Ball(self.radius).contains(gradient, rtol)

    def project(self, gradient: Tensor) -> Tensor:
        """Orthogonal projection on GRAD(rho) (Proposition 1): ``g min(1, radius/||g||)``.

        >>> import torch
        >>> from pfl_flower.objective.regularizers import L2
        >>> L2(lam=1.0).project(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
        """
        return Ball(self.radius).project(gradient)

    def attain(self, rho: Tensor, gradient: Tensor) -> Tensor:
        """Return a theta with ``grad_rho R(rho, theta) = gradient`` (Lemma 3, Proposition 3).

        Raises
        ------
        UnattainableGradientError
            If a gradient is outside GRAD(rho), or on its boundary where no theta attains it.
        """
        norm = length(gradient)
        if not bool(self.attains(norm).all()):
            raise UnattainableGradientError(
                f"gradient norm {norm.max().item():.6g}: expected "
                f"{'<=' if self.kink else '<'} {self.radius:.6g}"
            )
        direction = torch.where(
            norm > 0, gradient / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0.0
        )
        return rho - self.inverse_slope(norm) * direction
