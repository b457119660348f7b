"""The users of one node as batched tensors: what honest users compute from a broadcast."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pfl_flower.losses import LocalLoss, PointLoss, Reduction
from pfl_flower.models import Model, accuracy
from pfl_flower.regularizers import Regularizer
from pfl_flower.solvers import DEFAULT_TOLERANCE, ProximalSolver, Solution


@dataclass(frozen=True)
class UserData:
    """A user's features ``(n, q)``, labels ``(n,)`` or ``(n, c)``, weights ``(n,)`` (None: 1)."""

    features: Tensor
    labels: Tensor
    weights: Tensor | None = None


def padded_size(points: int) -> int:
    """Points after padding: a function of the user's own size alone, at most an eighth more.

    >>> [padded_size(n) for n in (1, 10, 17, 500, 60000)]
    [1, 10, 18, 512, 61440]
    """
    step: int = 2 ** max(0, int(math.log2(max(points, 1))) - 3)
    return math.ceil(points / step) * step


@dataclass(frozen=True)
class _Bucket:
    """Users of equal padded size: their rows in the node's order, true sizes, loss."""

    rows: Tensor
    sizes: Tensor
    loss: LocalLoss


class Population:
    """``k`` users with datasets of any sizes, who share a model, a loss and a regulariser.

    Parameters
    ----------
    users : sequence of UserData
        The datasets, in the order of the rows of every ``(k, d)`` tensor here.
    model, loss, regularizer, nu, reduction
        The problem (Equations 1 and 3).
    dtype, device
        Where and in which precision to compute.
    tolerance, max_iterations
        Contract of the exact solves, see ``ProximalSolver``.

    Raises
    ------
    ValueError
        If there is no user or a user has no point.
    """

    def __init__(
        self,
        users: Sequence[UserData],
        *,
        model: Model,
        loss: PointLoss,
        regularizer: Regularizer,
        nu: float = 0.0,
        reduction: Reduction = "sum",
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
        tolerance: float = DEFAULT_TOLERANCE,
        max_iterations: int = 100,
    ) -> None:
        if not users or any(len(user.features) == 0 for user in users):
            raise ValueError("users: expected at least one user, each with at least one point")
        self.model, self.regularizer = model, regularizer
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.size, self.device, self.dtype = len(users), torch.device(device), dtype
        by_size: dict[int, list[int]] = defaultdict(list)
        for row, user in enumerate(users):
            by_size[padded_size(len(user.features))].append(row)
        self._buckets = []
        for points, rows in sorted(by_size.items()):
            stacked = _stack([users[row] for row in rows], points, dtype, self.device)
            local = LocalLoss.build(
                model, loss, stacked[0], stacked[1], weights=stacked[2], nu=nu, reduction=reduction
            )
            sizes = torch.tensor([len(users[row].features) for row in rows])
            self._buckets.append(_Bucket(torch.tensor(rows), sizes, local))

    @cached_property
    def _solvers(self) -> list[ProximalSolver]:
        return [
            ProximalSolver(
                bucket.loss,
                self.regularizer,
                tolerance=self.tolerance,
                max_iterations=self.max_iterations,
            )
            for bucket in self._buckets
        ]

    def value(self, theta: Tensor) -> Tensor:
        """``L_n(theta_n)``, shape ``(k,)``."""
        return self._gather(lambda bucket: bucket.loss.value(theta[bucket.rows]))

    def gradient(self, theta: Tensor) -> Tensor:
        """``grad L_n(theta_n)``, shape ``(k, d)``."""
        return self._gather(lambda bucket: bucket.loss.gradient(theta[bucket.rows]))

    def minibatch_gradient(self, theta: Tensor, draws: Sequence[Tensor]) -> Tensor:
        """Estimate ``grad L_n(theta_n)`` from uniform draws in [0, 1), one ``(b,)`` a user."""

        def estimate(bucket: _Bucket) -> Tensor:
            uniform = torch.stack([draws[row] for row in bucket.rows.tolist()])
            index = (uniform * bucket.sizes[:, None]).long().to(self.device)
            sizes = bucket.sizes.to(self.device)
            return bucket.loss.minibatch(index, sizes).gradient(theta[bucket.rows])

        return self._gather(estimate)

    def hessian(self, row: int, theta: Tensor) -> Tensor:
        """``Hess L_n(theta)`` of one user, ``(d, d)``, for ``theta (d,)``; linear models only."""
        for bucket in self._buckets:
            found = (bucket.rows == row).nonzero()
            if len(found):
                index = int(found[0, 0])
                return bucket.loss.select(slice(index, index + 1)).hessian(theta[None])[0]
        raise IndexError(f"row {row}: expected 0 .. {self.size - 1}")

    def smoothness(self) -> Tensor:
        """Upper bound on the curvature of each ``L_n``, shape ``(k,)``."""
        return self._gather(lambda bucket: bucket.loss.smoothness())

    def solve(self, rho: Tensor, start: Tensor) -> Solution:
        """Exact local models ``argmin L_n(theta) + R(rho, theta)`` from ``start (k, d)``."""
        parts = [
            solver.solve(rho, start[bucket.rows])
            for bucket, solver in zip(self._buckets, self._solvers, strict=True)
        ]
        order = torch.argsort(torch.cat([bucket.rows for bucket in self._buckets]))
        return Solution(
            theta=torch.cat([part.theta for part in parts])[order],
            residual=torch.cat([part.residual for part in parts])[order],
            iterations=torch.cat([part.iterations for part in parts])[order],
            converged=torch.cat([part.converged for part in parts])[order],
        )

    def report(self, rho: Tensor, theta: Tensor) -> Tensor:
        """Return the honest reports ``g_n = grad_rho R(rho, theta_n)``, shape ``(k, d)``.

        For l2 at ``theta_n = rho`` every vector of the ball is a subgradient; the honest one is
        the projection of ``grad L_n(rho)``: at an exact local optimum that is the gradient of the
        user's envelope.
        """
        reports = self.regularizer.grad_rho(rho, theta)
        at_kink = (theta == rho).all(dim=-1)
        if self.regularizer.kink > 0 and bool(at_kink.any()):
            opinion = self.regularizer.project(self.gradient(theta))
            reports = torch.where(at_kink[:, None], opinion, reports)
        return reports

    def accuracy(self, theta: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Accuracy of each user's model on shared points ``(m, q)``, shape ``(k,)``."""
        return torch.stack(
            [accuracy(self.model.scores(row[None], features), labels)[0] for row in theta]
        )

    def _gather(self, compute: Callable[[_Bucket], Tensor]) -> Tensor:
        order = torch.argsort(torch.cat([bucket.rows for bucket in self._buckets]))
        return torch.cat([compute(bucket) for bucket in self._buckets])[order]


def _stack(
    users: Sequence[UserData], points: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and weights of users of at most ``points`` points, padded with weight 0."""
    first = users[0]
    features = first.features.new_zeros(
        (len(users), points, *first.features.shape[1:]), dtype=dtype
    )
    labels = first.labels.new_zeros((len(users), points, *first.labels.shape[1:]))
    weights = torch.zeros((len(users), points), dtype=dtype)
    for row, user in enumerate(users):
        size = len(user.features)
        features[row, :size] = user.features
        labels[row, :size] = user.labels
        weights[row, :size] = 1.0 if user.weights is None else user.weights
    if labels.is_floating_point():
        labels = labels.to(dtype)
    return features.to(device), labels.to(device), weights.to(device)
