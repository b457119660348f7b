"""Designing queries without constraints: a small problem in the space of scores, then a lift.

A label's pull on a linear classifier, ``(y - p(s)) Q^T``, depends on Q through its scores ``s``,
which live in at most C - 1 dimensions, and through Q itself, linearly. Split each query along the
row space of theta_spade and across it: the part along it fixes the scores and must match
``C (C-1)`` equations at most, whatever the number of features; the part across it is free and
matches the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pfl_flower.attacks.poisoning.aim import Aim
from pfl_flower.objective.losses import Logistic, PointLoss, Softmax

RANK = 1e-10
"""Singular values of theta_spade below this fraction of the largest count as 0: queries along them
would be 1e10 times as long, with rounding of 1e-6 in their scores."""
LIFT_RANK = 1e-12
"""The same for the labels' pulls in a lift, a few rows that are independent or exactly not."""


@dataclass(frozen=True)
class Design:
    """Designed points: ``points (n, k)``, hard ``labels (n,)``, ``weights (n,)``."""

    points: Tensor
    labels: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Task:
    """Find points of few features whose labels' pulls add up to a demand.

    Attributes
    ----------
    theta, demand : Tensor
        ``(c, k)``: scores are ``points @ theta^T``; ``sum w (y - p) point^T = demand``.
    loss : PointLoss
        Softmax or logistic.
    bias : bool
        Whether the last feature is the constant 1.
    """

    theta: Tensor
    demand: Tensor
    loss: PointLoss
    bias: bool

    @classmethod
    def of(cls, aim: Aim) -> Task:
        """Return the task in the space of the queries themselves.

        Raises
        ------
        ValueError
            If the loss is not a classifier's or the model not linear.
        """
        if not isinstance(aim.loss, Softmax | Logistic):
            raise ValueError("loss: queries are designed for classifiers only")
        return cls(aim.theta, aim.demand, aim.loss, aim.bias)

    @property
    def classes(self) -> Tensor:
        """The hard labels there are."""
        if isinstance(self.loss, Logistic):
            return torch.tensor([-1, 1], device=self.theta.device)
        return torch.arange(len(self.theta), device=self.theta.device)

    @property
    def basis(self) -> Tensor:
        """Orthonormal columns ``(c, r)`` that span all ``y - p``: for softmax their sum is 0."""
        size = len(self.theta)
        identity = torch.eye(size, dtype=self.theta.dtype, device=self.theta.device)
        if isinstance(self.loss, Logistic):
            return identity
        # All singular values are 1 but the last, of equal entries, which is 0.
        return torch.linalg.svd(identity - 1 / size)[0][:, : size - 1]

    def residuals(self, points: Tensor, labels: Tensor) -> Tensor:
        """``y - p``, minus the derivative of the loss in the scores, ``(n, c)``."""
        if isinstance(self.loss, Softmax):
            # As distributions, labels give a derivative that can itself be differentiated.
            labels = functional.one_hot(labels, len(self.theta)).to(points.dtype)
        return -self.loss.gradient(points @ self.theta.T, labels)

    def worth(self, points: Tensor, labels: Tensor, prices: Tensor) -> tuple[Tensor, Tensor]:
        """Return what pairs are worth at prices Y ``(c, k)``, and its gradient in the points.

        ``(y - p(s))^T Y x`` at ``s = theta x``, ``(n,)``; its gradient is ``Y^T (y - p) - theta^T
        H Y x``, ``(n, k)``, H the loss's second derivative in the scores.
        """
        pull, direction = self.residuals(points, labels), points @ prices.T
        curved = self.loss.curvature(points @ self.theta.T, direction)
        return (pull * direction).sum(dim=1), pull @ prices - curved @ self.theta

    def columns(self, points: Tensor, labels: Tensor) -> Tensor:
        """Return pulls of unit weight in the coordinates of ``basis``, ``(r k, n)``."""
        left = self.residuals(points, labels) @ self.basis
        return torch.einsum("nr,nk->rkn", left, points).reshape(-1, len(points))

    def wanted(self) -> Tensor:
        """Return the demand in the coordinates of ``basis``, ``(r k,)``."""
        return (self.basis.T @ self.demand).reshape(-1)


@dataclass(frozen=True)
class Reduction:
    """The task in score space, ``k`` at most C (C - 1 and a constant), and the way back.

    Attributes
    ----------
    task : Task
        Its points are ``[z; 1]``, or z without a bias, ``z`` the coordinates of the scores.
    along, shift : Tensor
        ``(k', p)``, ``(k',)``: a query's part along the row space is ``(z - shift) @ along``.
    across : Tensor
        ``(c, p)``: the demand on the part across it.
    """

    task: Task
    along: Tensor
    shift: Tensor
    across: Tensor

    @classmethod
    def of(cls, aim: Aim) -> Reduction:
        """Split an aim by the singular value decomposition of theta_spade's slopes."""
        full = Task.of(aim)
        # Equal shifts of all classes change no probability.
        theta = full.theta if isinstance(aim.loss, Logistic) else full.theta - full.theta.mean(0)
        slopes, biases = (theta[:, :-1], theta[:, -1:]) if aim.bias else (theta, theta[:, :0])
        demand = full.demand[:, :-1] if aim.bias else full.demand
        left, values, right = torch.linalg.svd(slopes, full_matrices=False)
        rank = int((values > RANK * values.max()).sum())
        left, values, right = left[:, :rank], values[:rank], right[:rank]
        # Where z = 0 the scores are 0, as far as the slopes can cancel the biases.
        shift = left.T @ biases
        last = full.demand[:, demand.shape[1] :]
        moments = demand @ right.T * values + last @ shift.T
        task = Task(
            torch.cat([left, biases - left @ shift], dim=1),
            torch.cat([moments, last], dim=1),
            aim.loss,
            aim.bias,
        )
        along = right / values[:, None]
        return cls(task, along, shift.sum(dim=1), demand - demand @ right.T @ right)

    def completed(self, design: Design) -> Design:
        """Return a design whose ``y - p`` span all there are, so that a lift exists.

        Where they do not, one more query with zero coordinates gets every label, in the proportions
        p of a total weight of 1: these pulls cancel in score space.
        """
        rates = self.task.residuals(design.points, design.labels)
        rank = int(torch.linalg.matrix_rank(rates * design.weights[:, None]))
        if rank == self.task.basis.shape[1]:
            return design
        labels = self.task.classes
        point = torch.zeros_like(design.points[:1])
        point[:, point.shape[1] - int(self.task.bias) :] = 1
        points = point.expand(len(labels), -1)
        chances = torch.exp(-self.task.loss.values(points @ self.task.theta.T, labels))
        return Design(
            torch.cat([design.points, points]),
            torch.cat([design.labels, labels]),
            torch.cat([design.weights, chances]),
        )

    def lift(self, design: Design) -> Tensor:
        """Return queries ``(n, q)`` with the designed scores that meet the whole aim.

        The parts across the row space are the shortest ones with ``sum w (y - p) x^T`` as
        demanded, which exist for a ``completed`` design.
        """
        coordinates = design.points[:, :-1] if self.task.bias else design.points
        rates = self.task.residuals(design.points, design.labels) * design.weights[:, None]
        across = torch.linalg.pinv(rates.T, rtol=LIFT_RANK) @ self.across
        queries = (coordinates - self.shift) @ self.along + across
        return torch.cat([queries, design.points[:, -1:]], dim=1) if self.task.bias else queries
