"""Local losses L_n (Equation 3) of a batch of users.

    L_n(theta, D) = nu ||theta||^2 + s_n sum_{x in D} w_x loss(theta, x)

with ``s_n = 1`` for the paper's sum and ``s_n = 1/sum(w)`` for the mean (Appendix C).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor

from pfl_flower.objective.aligned import aligned, product
from pfl_flower.objective.losses import PointLoss
from pfl_flower.objective.models import Linear, Model
from pfl_flower.objective.modules import ModuleModel
from pfl_flower.objective.two_layer import Kept, TwoLayer
from pfl_flower.objective.weighted_points import WeightedPoints

Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class LocalLoss(WeightedPoints):
    """L_n of ``k`` users.

    Parameters
    ----------
    loss : PointLoss
        What the scores cost.
    nu : float
        Local regularisation, non-negative.
    **points
        See ``WeightedPoints``.
    """

    loss: PointLoss
    nu: float

    @classmethod
    def build(
        cls,
        model: Model,
        loss: PointLoss,
        features: Tensor,
        labels: Tensor,
        *,
        weights: Tensor | None = None,
        nu: float = 0.0,
        reduction: Reduction = "sum",
        compress: bool = True,
    ) -> LocalLoss:
        """Build the loss of users with ``features (k, n, q)``, ``labels``, ``weights (k, n)``.

        Raises
        ------
        ValueError
            If ``nu`` or a weight is negative or not finite, or if the shapes disagree.
        """
        if not (math.isfinite(nu) and nu >= 0):
            raise ValueError(f"nu = {nu}: expected a non-negative finite number")
        weights = features.new_ones(features.shape[:2]) if weights is None else weights
        if features.shape[:2] != labels.shape[:2] or features.shape[:2] != weights.shape:
            raise ValueError(
                f"features {tuple(features.shape)}, labels {tuple(labels.shape)}, "
                f"weights {tuple(weights.shape)}: "
                "expected the same number of users and points"
            )
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            raise ValueError("weights: expected non-negative finite numbers")
        total = weights.sum(dim=1)
        # A mean over points that all weigh 0 is 0.
        tiny = torch.finfo(total.dtype).tiny
        scale = torch.ones_like(total) if reduction == "sum" else 1 / total.clamp(min=tiny)
        return cls(
            model=model,
            loss=loss,
            features=aligned(features),
            labels=labels,
            weights=weights,
            nu=nu,
            scale=scale,
            compress=compress,
        )

    def select(self, index: Tensor | slice) -> Self:
        """Return the same for the users at ``index``, with what is kept of their points."""
        some = super().select(index)
        if isinstance(self.model, TwoLayer) and self._kept:
            users = torch.arange(self.users)[index].tolist()
            # Else every round that asks some of the users would go through their zeros anew.
            object.__setattr__(some, "_kept", [self._kept[user] for user in users])
        return some

    def value(self, theta: Tensor) -> Tensor:
        """``L_n(theta_n)``, shape ``(k,)``."""

        def sum_of(users: slice, part: LocalLoss) -> Tensor:
            scores = part.scores(theta[users])
            return part._sum_of_values(scores)

        return self.nu * (theta * theta).sum(dim=-1) + self.sum_parts(sum_of)

    def gradient(self, theta: Tensor) -> Tensor:
        """``grad L_n(theta_n)``, ``(k, d)``: matrix products; torch.func for models of others."""
        if isinstance(self.model, TwoLayer):
            pulled = self.model.backward(theta, self.features, self._slope, self._kept)
            return pulled + 2 * self.nu * theta
        if isinstance(self.model, ModuleModel):
            return self.model.backward(theta, self.features, self._slope) + 2 * self.nu * theta
        # One backward pass for all users: a user's theta has no part in another's loss.
        if not isinstance(self.model, Linear):
            gradient: Tensor = torch.func.grad(lambda t: self.value(t).sum())(theta)
            return gradient

        def sum_of(users: slice, part: LocalLoss) -> Tensor:
            scores = part.scores(theta[users])
            return part.pull_back(self.loss.gradient(scores, part.labels))

        pulled = self.sum_parts(sum_of)
        return torch.add(pulled, theta, alpha=2 * self.nu) if self.nu else pulled

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, ``(k,)`` and ``(k, d)``, from the same scores where the model is linear."""
        if not isinstance(self.model, Linear):
            return self.value(theta), self.gradient(theta)

        def sum_of(users: slice, part: LocalLoss) -> Tensor:
            scores = part.scores(theta[users])
            pulled = part.pull_back(self.loss.gradient(scores, part.labels))
            # One tensor from each part: values go along as a column.
            return torch.cat([part._sum_of_values(scores)[:, None], pulled], dim=1)

        both = self.sum_parts(sum_of)
        value = self.nu * (theta * theta).sum(dim=-1) + both[:, 0]
        return value, torch.add(both[:, 1:], theta, alpha=2 * self.nu)

    def hessian_map(self, theta: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``v -> Hess L_n(theta_n) v_n``, ``(k, d)``; linear models only.

        The scores at theta are kept for all products, which are matrix products themselves.
        """

        def score(users: slice, part: LocalLoss) -> Tensor:
            return part.scores(theta[users])

        kept = self.each_part(score)

        def product(direction: Tensor) -> Tensor:
            def sum_of(users: slice, part: LocalLoss, scores: Tensor) -> Tensor:
                pushed = part.scores(direction[users])
                return part.pull_back(self.loss.curvature(scores, pushed))

            return torch.add(self.sum_parts(sum_of, kept), direction, alpha=2 * self.nu)

        return product

    def hessian_product(self, theta: Tensor, direction: Tensor) -> Tensor:
        """``Hess L_n(theta_n) v_n``, shape ``(k, d)``; linear models only."""
        return self.hessian_map(theta)(direction)

    def hessian(self, theta: Tensor) -> Tensor:
        """``Hess L_n(theta_n)`` as dense matrices ``(k, d, d)``; linear models only."""
        # diag(a) (x) Q Q^T fills the blocks on the diagonal, b b^T (x) Q Q^T is one product of the
        # matrix with rows sqrt(w) b (x) Q with itself: neither makes a tensor (n, d, d).
        diagonal, rank_one = self.loss.factors(self.model.scores(theta, self.features))
        weight = self.point_weights[..., None]
        users, points, inputs = self.features.shape
        shape = (users, self.model.outputs, inputs, self.model.outputs, inputs)
        hessian = theta.new_zeros((users, self.model.dim, self.model.dim))
        blocks = hessian.view(shape).diagonal(dim1=1, dim2=3)
        blocks.copy_(self._moments(diagonal * weight).permute(0, 2, 3, 1))
        if rank_one is not None:
            rows = (rank_one * weight.sqrt())[..., None] * self.features[:, :, None, :]
            rows = rows.reshape(users, points, self.model.dim)
            if theta.is_cpu:
                hessian -= rows.transpose(1, 2) @ rows
            else:
                hessian.baddbmm_(rows.transpose(1, 2), rows, alpha=-1)
        hessian.diagonal(dim1=1, dim2=2).add_(2 * self.nu)
        return hessian

    def _moments(self, weights: Tensor) -> Tensor:
        """``sum_x w_xc Q Q^T`` for ``weights (k, n, c)``, ``(k, c, q, q)``."""
        if weights.is_cpu:
            return torch.einsum("knc,knq,knr->kcqr", weights, self.features, self.features)
        # What einsum does, without its search for an order, which takes a card's caller longer.
        users, _, inputs = self.features.shape
        weighted = weights.mT[:, :, None] * self.features.mT[:, None]
        return (weighted.flatten(1, 2) @ self.features).view(users, -1, inputs, inputs)

    def second_moments(self, theta: Tensor, *, diagonal: bool = False) -> Tensor:
        """``s_n sum_x w_x k_x Q Q^T``, ``(k, q, q)``, with the curvature of a score for k_x.

        ``k_x`` is the mean over classes of the second derivative's diagonal, which makes this the
        Hessian's mean diagonal block; its diagonal alone, ``(k, q)``, if asked. Linear models only.
        """

        def sum_of(users: slice, part: LocalLoss) -> Tensor:
            scores = part.scores(theta[users])
            curvature = self.loss.curvatures(scores).mean(dim=-1)
            weight = curvature * part.point_weights
            if diagonal:
                return product(weight[:, None], aligned(part.features**2))[:, 0]
            return product((part.features * weight[..., None]).mT, part.features)

        return self.sum_parts(sum_of)

    def smoothness(self) -> Tensor:
        """Upper bound ``2 nu + s_n bound ||X^T W X||_2`` on each L_n's curvature, ``(k,)``."""
        # A singular value decomposition of each user's features: once a run, for its step size.
        weight = self.point_weights.sqrt()[..., None]
        spectral = torch.linalg.matrix_norm(self.features * weight, ord=2)
        return 2 * self.nu + self.loss.curvature_bound * spectral**2

    @cached_property
    def _kept(self) -> list[Kept]:
        """Users' points without zeros, for a network of two layers."""
        assert isinstance(self.model, TwoLayer)
        return self.model.without_zeros(self.features) if self.compress else []

    def _sum_of_values(self, scores: Tensor) -> Tensor:
        return self.scale * (self.weights * self.loss.values(scores, self.labels)).sum(dim=-1)

    def _slope(self, scores: Tensor, users: slice, part: slice) -> Tensor:
        slope = self.loss.gradient(scores, self.labels[users, part])
        return slope if self.plain else slope * self.point_weights[users, part, None]
