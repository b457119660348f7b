"""Local losses L_n (Equation 3) of a batch of users.

    L_n(theta, D) = nu ||theta||^2 + s_n sum_{x in D} w_x loss(theta, x)

with ``s_n = 1`` for the paper's sum and ``s_n = 1/sum(w)`` for the mean (Appendix C).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from pfl_flower.objective import point_blocks
from pfl_flower.objective.losses import PointLoss
from pfl_flower.objective.models import Linear, Model, TwoLayer
from pfl_flower.objective.sparse_features import Compressed

Reduction = Literal["sum", "mean"]
ALL = slice(None)


@dataclass(frozen=True, kw_only=True)
class LocalLoss:
    """L_n of ``k`` users who hold (after padding with weight 0) the same number ``n`` of points.

    Parameters
    ----------
    model, loss
        What maps a theta to scores, and what the scores cost.
    features : Tensor
        ``(k, n, q)``, the constant column included.
    labels : Tensor
        ``(k, n)``, or ``(k, n, c)`` for soft labels.
    weights : Tensor
        ``(k, n)``, non-negative; 0 for padding.
    nu : float
        Local regularisation, non-negative.
    scale : Tensor
        ``(k,)``: 1 for a sum, 1/sum(w) for a mean.
    compress : bool
        Whether a linear model's products leave out the zeros of users with many points, where most
        features are zero. That takes as long as some twenty gradients, once.
    compressed : Compressed, optional
        The features of one user, without their zeros.
    """

    model: Model
    loss: PointLoss
    features: Tensor
    labels: Tensor
    weights: Tensor
    nu: float
    scale: Tensor
    compress: bool = True
    compressed: Compressed | None = None

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
        tiny = torch.finfo(total.dtype).tiny
        scale = torch.ones_like(total) if reduction == "sum" else 1 / total.clamp(min=tiny)
        return cls(
            model=model,
            loss=loss,
            features=features,
            labels=labels,
            weights=weights,
            nu=nu,
            scale=scale,
            compress=compress,
        )

    @property
    def users(self) -> int:
        """Number of users k."""
        return self.features.shape[0]

    def select(self, index: Tensor | slice) -> LocalLoss:
        """Return the same loss for the users at ``index`` (a slice copies nothing)."""
        chosen = replace(
            self,
            features=self.features[index],
            labels=self.labels[index],
            weights=self.weights[index],
            scale=self.scale[index],
        )
        if self.compress and self._in_blocks:
            each = len(self._blocks) // self.users
            # What took long to compress is kept: the place of a cached property is written to.
            chosen.__dict__["_blocks"] = [
                (slice(new, new + 1), part)
                for new, user in enumerate(torch.arange(self.users)[index].tolist())
                for _, part in self._blocks[user * each : (user + 1) * each]
            ]
        return chosen

    def block(self, users: slice, points: slice) -> LocalLoss:
        """Return the loss on some points of some users, with the users' own scales."""
        return replace(
            self,
            features=self.features[users, points],
            labels=self.labels[users, points],
            weights=self.weights[users, points],
            scale=self.scale[users],
        )

    def to(self, dtype: torch.dtype) -> LocalLoss:
        """Return the same loss in another precision; itself if it has it."""
        if self.features.dtype == dtype:
            return self
        soft = self.labels.is_floating_point()
        return replace(
            self,
            features=self.features.to(dtype),
            labels=self.labels.to(dtype) if soft else self.labels,
            weights=self.weights.to(dtype),
            scale=self.scale.to(dtype),
        )

    def minibatch(self, index: Tensor, sizes: Tensor) -> LocalLoss:
        """Estimate from points ``index (k, b)``, unbiased when uniform among ``sizes (k,)``."""
        rows = torch.arange(self.users, device=index.device)[:, None]
        stretch = (sizes / index.shape[1]).to(self.weights.dtype)[:, None]
        return replace(
            self,
            features=self.features[rows, index],
            labels=self.labels[rows, index],
            weights=self.weights[rows, index] * stretch,
            compress=False,
        )

    def value(self, theta: Tensor) -> Tensor:
        """``L_n(theta_n)``, shape ``(k,)``."""

        def sum_of(users: slice, part: LocalLoss) -> Tensor:
            scores = part._scores(theta[users])
            return part._sum_of_values(scores)

        return self.nu * (theta * theta).sum(dim=-1) + self._sum(sum_of)

    def gradient(self, theta: Tensor) -> Tensor:
        """``grad L_n(theta_n)``, ``(k, d)``: matrix products; torch.func for models of others."""
        if isinstance(self.model, TwoLayer):
            return self.model.backward(theta, self.features, self._slope) + 2 * self.nu * theta
        if not isinstance(self.model, Linear):
            gradient: Tensor = torch.func.grad(lambda t: self.value(t).sum())(theta)
            return gradient

        def sum_of(users: slice, part: LocalLoss) -> Tensor:
            scores = part._scores(theta[users])
            return part._pull_back(self.loss.gradient(scores, part.labels))

        return torch.add(self._sum(sum_of), theta, alpha=2 * self.nu)

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, ``(k,)`` and ``(k, d)``, from the same scores where the model is linear."""
        if not isinstance(self.model, Linear):
            return self.value(theta), self.gradient(theta)

        def sum_of(users: slice, part: LocalLoss) -> Tensor:
            scores = part._scores(theta[users])
            pulled = part._pull_back(self.loss.gradient(scores, part.labels))
            return torch.cat([part._sum_of_values(scores)[:, None], pulled], dim=1)

        both = self._sum(sum_of)
        value = self.nu * (theta * theta).sum(dim=-1) + both[:, 0]
        return value, torch.add(both[:, 1:], theta, alpha=2 * self.nu)

    def hessian_map(self, theta: Tensor) -> Callable[[Tensor], Tensor]:
        """Return ``v -> Hess L_n(theta_n) v_n``, ``(k, d)``; linear models only.

        The scores at theta are kept for all products, which are matrix products themselves.
        """

        def score(users: slice, part: LocalLoss) -> Tensor:
            return part._scores(theta[users])

        kept = point_blocks.each(score, self._parts)

        def product(direction: Tensor) -> Tensor:
            def sum_of(users: slice, part: LocalLoss, scores: Tensor) -> Tensor:
                pushed = part._scores(direction[users])
                return part._pull_back(self.loss.curvature(scores, pushed))

            return torch.add(self._sum(sum_of, kept), direction, alpha=2 * self.nu)

        return product

    def hessian_product(self, theta: Tensor, direction: Tensor) -> Tensor:
        """``Hess L_n(theta_n) v_n``, shape ``(k, d)``; linear models only."""
        return self.hessian_map(theta)(direction)

    def hessian(self, theta: Tensor) -> Tensor:
        """``Hess L_n(theta_n)`` as dense matrices ``(k, d, d)``; linear models only."""
        diagonal, rank_one = self.loss.factors(self.model.scores(theta, self.features))
        weight = self._point_weights[..., None]
        users, points, inputs = self.features.shape
        point_blocks = torch.einsum(
            "knc,knq,knr->kcqr", diagonal * weight, self.features, self.features
        )
        hessian = torch.zeros(
            (users, self.model.dim, self.model.dim), dtype=theta.dtype, device=theta.device
        )
        for label in range(self.model.outputs):
            block = slice(label * inputs, (label + 1) * inputs)
            hessian[:, block, block] = point_blocks[:, label]
        if rank_one is not None:
            rows = (rank_one * weight.sqrt())[..., None] * self.features[:, :, None, :]
            rows = rows.reshape(users, points, self.model.dim)
            hessian -= rows.transpose(1, 2) @ rows
        hessian.diagonal(dim1=1, dim2=2).add_(2 * self.nu)
        return hessian

    def second_moments(self, theta: Tensor, *, diagonal: bool = False) -> Tensor:
        """``s_n sum_x w_x k_x Q Q^T``, ``(k, q, q)``, with the curvature of a score for k_x.

        ``k_x`` is the mean over classes of the second derivative's diagonal, which makes this the
        Hessian's mean diagonal block; its diagonal alone, ``(k, q)``, if asked. Linear models only.
        """

        def sum_of(users: slice, part: LocalLoss) -> Tensor:
            scores = part._scores(theta[users])
            curvature = self.loss.curvatures(scores).mean(dim=-1)
            weight = curvature * part._point_weights
            if diagonal:
                return (weight[:, None] @ part.features**2)[:, 0]
            return (part.features * weight[..., None]).mT @ part.features

        return self._sum(sum_of)

    def smoothness(self) -> Tensor:
        """Upper bound ``2 nu + s_n bound ||X^T W X||_2`` on each L_n's curvature, ``(k,)``."""
        weight = self._point_weights.sqrt()[..., None]
        spectral = torch.linalg.matrix_norm(self.features * weight, ord=2)
        return 2 * self.nu + self.loss.curvature_bound * spectral**2

    @cached_property
    def _blocks(self) -> list[tuple[slice, LocalLoss]]:
        slices = point_blocks.block_slices(self.features)
        parts = [(users, self.block(users, points)) for users, points in slices]
        if not self.compress:
            return parts
        return [
            (users, replace(part, compressed=Compressed.of(part.features[0])))
            for users, part in parts
        ]

    @property
    def _in_blocks(self) -> bool:
        # Other models' gradients come from torch.func, which does not follow into threads.
        return isinstance(self.model, Linear) and point_blocks.pays(self.features)

    @property
    def _parts(self) -> list[tuple[slice, LocalLoss]]:
        """Blocks of points where a user has many, with the user that each is of; or all at once."""
        # A list that names the loss itself is not kept: such a cycle would hold on to the data.
        return self._blocks if self._in_blocks else [(ALL, self)]

    def _sum(self, sum_of: Callable[..., Tensor], *more: Sequence[Tensor]) -> Tensor:
        """Return a sum over points, ``(k, ...)``, of what ``sum_of`` gives for the parts."""
        parts = self._parts
        if len(parts) == 1:
            return sum_of(*parts[0], *(values[0] for values in more))
        tasks = [(*part, *rest) for part, *rest in zip(parts, *more, strict=True)]
        together = torch.cat(point_blocks.each(sum_of, tasks))
        return together.view(self.users, -1, *together.shape[1:]).sum(dim=1)

    def _sum_of_values(self, scores: Tensor) -> Tensor:
        return self.scale * (self.weights * self.loss.values(scores, self.labels)).sum(dim=-1)

    def _slope(self, scores: Tensor, part: slice) -> Tensor:
        slope = self.loss.gradient(scores, self.labels[:, part])
        return slope if self._plain else slope * self._point_weights[:, part, None]

    @cached_property
    def _point_weights(self) -> Tensor:
        """``s_n w_x``, ``(k, n)``."""
        return self.weights * self.scale[:, None]

    @cached_property
    def _plain(self) -> bool:
        """Whether every point counts for 1."""
        return bool((self._point_weights == 1).all())

    def _scores(self, theta: Tensor) -> Tensor:
        if self.compressed is None:
            return self.model.scores(theta, self.features)
        return self.compressed.scores(theta.view(-1, self.model.inputs))[None]

    def _pull_back(self, scores: Tensor) -> Tensor:
        weighted = scores if self._plain else scores * self._point_weights[..., None]
        if self.compressed is not None:
            return self.compressed.pull_back(weighted[0]).reshape(1, -1)
        return (weighted.transpose(1, 2) @ self.features).reshape(self.users, -1)
