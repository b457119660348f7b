"""What the scores of one point cost: least squares, logistic and softmax cross-entropy.

On the CPU a point's bits must not depend on where it is among others. torch computes the last few
numbers of a tensor, or of a thread's share, by other code than the rest, and for some functions
(sigmoid, softplus, softmax, sums over an axis that is not the last) with other last digits. So what
is used there is exp, log, log1p and arithmetic, of which both codes agree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional


class PointLoss(ABC):
    """A convex loss of scores ``(..., n, c)`` against labels, and its derivatives in the scores."""

    @abstractmethod
    def values(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Loss of each point, shape ``(..., n)``."""

    @abstractmethod
    def gradient(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return derivative in the scores, shape ``(..., n, c)``."""

    @abstractmethod
    def curvature(self, scores: Tensor, direction: Tensor) -> Tensor:
        """Second derivative in the scores times ``direction``, shape ``(..., n, c)``."""

    @abstractmethod
    def factors(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a, b of the second derivative ``diag(a) - b b^T``, ``(..., n, c)``, or b None."""

    def curvatures(self, scores: Tensor) -> Tensor:
        """Diagonal ``a - b^2`` of the second derivative in the scores, ``(..., n, c)``."""
        first, second = self.factors(scores)
        return first if second is None else first - second**2

    @property
    @abstractmethod
    def curvature_bound(self) -> float:
        """Largest eigenvalue that the second derivative in the scores can have."""


class LeastSquares(PointLoss):
    """``1/2 (theta^T Q - A)^2`` (Theorem 2); labels are real, of shape ``(..., n)``."""

    def values(self, scores: Tensor, labels: Tensor) -> Tensor:
        """``1/2 (s - A)^2``."""
        return 0.5 * (scores[..., 0] - labels) ** 2

    def gradient(self, scores: Tensor, labels: Tensor) -> Tensor:
        """``s - A``."""
        return (scores[..., 0] - labels)[..., None]

    def curvature(self, scores: Tensor, direction: Tensor) -> Tensor:
        """Return the direction itself."""
        return direction

    def factors(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``a = 1``."""
        return torch.ones_like(scores), None

    @property
    def curvature_bound(self) -> float:
        """1."""
        return 1.0


class Logistic(PointLoss):
    """``-ln sigma(A theta^T Q)`` (Theorem 3); labels are 1 and -1, of shape ``(..., n)``."""

    def values(self, scores: Tensor, labels: Tensor) -> Tensor:
        """``softplus(-A s)``."""
        return -functional.logsigmoid(labels * scores[..., 0])

    def gradient(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return ``-A sigma(-A s)``."""
        return (-labels * _sigmoid(-labels * scores[..., 0]))[..., None]

    def curvature(self, scores: Tensor, direction: Tensor) -> Tensor:
        """``sigma(s) sigma(-s)`` times the direction."""
        return self.factors(scores)[0] * direction

    def factors(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``a = sigma(s) sigma(-s)``."""
        # Not p (1 - p), which is 0 from a score of 37 on, where p rounds to 1. Of the two one is
        # 1 / (1 + e^-|s|), and the other e^-|s| times that.
        small = torch.exp(-scores.abs())
        whole = 1 + small
        return (1 / whole) * (small / whole), None

    @property
    def curvature_bound(self) -> float:
        """1/4, at a score of 0."""
        return 0.25


def _sigmoid(scores: Tensor) -> Tensor:
    """``1 / (1 + e^-s)``, with all its digits on both sides."""
    small = torch.exp(-scores.abs())
    return torch.where(scores >= 0, 1.0, small) / (1 + small)


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last axis, ``(..., n, c)``, a class's numbers side by side."""
    if not scores.is_cpu or scores.dim() == 1:
        return torch.softmax(scores, dim=-1)
    exponentials = torch.exp(_below_largest(scores)[0])
    # Not in place: designed data take the derivative of slopes.
    return (exponentials / over_classes(exponentials)).mT


def _log_norm(scores: Tensor) -> Tensor:
    """Return ``ln sum_a e^{s_a}``, ``(..., n)``."""
    # Largest score taken out first, or exp overflows from 710 on (89 in single precision).
    if not scores.is_cpu or scores.dim() == 1:
        return torch.logsumexp(scores, dim=-1)
    below, largest = _below_largest(scores)
    return (largest + torch.log(over_classes(torch.exp(below))))[..., 0, :]


@lru_cache
def _minus_one(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), -1.0, dtype=dtype, device=device)


def _below_largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores less the point's largest, ``(..., c, n)``, and the largest, ``(..., 1, n)``."""
    rows = scores.mT.contiguous()
    largest = rows.detach().amax(dim=-2, keepdim=True)
    # What is infinite stays so, and is not taken from itself.
    largest = largest.masked_fill(largest.isinf(), 0.0)
    return rows - largest, largest


def over_classes(values: Tensor) -> Tensor:
    """Return the sum over classes of ``(..., c, n)``, as ``(..., 1, n)``, by halves.

    >>> over_classes(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    tensor([[ 9., 12.]])
    """
    while (count := values.shape[-2]) > 1:
        half = count // 2
        added = values[..., :half, :] + values[..., half : 2 * half, :]
        if count % 2:
            added[..., 0, :] += values[..., -1, :]
        values = added
    return values


class Softmax(PointLoss):
    """Cross-entropy ``-sum_a y_a ln softmax_a(s)``.

    Labels are class numbers ``(..., n)`` or distributions over classes ``(..., n, c)``.
    """

    def values(self, scores: Tensor, labels: Tensor) -> Tensor:
        """``logsumexp(s) - <y, s>``."""
        if not (scores.is_cpu or labels.is_floating_point() or scores.dim() == 1):
            # On a card two operations instead of twelve.
            flat = scores.reshape(-1, scores.shape[-1]), labels.reshape(-1)
            return functional.cross_entropy(*flat, reduction="none").view(labels.shape)
        log_norm = _log_norm(scores)
        if labels.is_floating_point():
            return log_norm - over_classes((labels * scores).mT)[..., 0, :]
        return log_norm - scores.gather(-1, labels[..., None])[..., 0]

    def gradient(self, scores: Tensor, labels: Tensor) -> Tensor:
        """``softmax(s) - y``."""
        probabilities = _softmax(scores)
        if labels.is_floating_point():
            return probabilities - labels
        # One entry of each row changes: no one-hot matrix as large as the scores is made.
        minus_one = _minus_one(scores.dtype, scores.device).expand((*labels.shape, 1))
        return probabilities.scatter_add_(-1, labels[..., None], minus_one)

    def curvature(self, scores: Tensor, direction: Tensor) -> Tensor:
        """``p * v - p <p, v>``."""
        probabilities = _softmax(scores)
        weighted = probabilities * direction
        return weighted - probabilities * over_classes(weighted.mT).mT

    def factors(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``a = b = softmax(s)``."""
        probabilities = _softmax(scores)
        return probabilities, probabilities

    @property
    def curvature_bound(self) -> float:
        """1/2, where two classes share all probability."""
        return 0.5


LOSSES: dict[str, type[PointLoss]] = {
    "least-squares": LeastSquares,
    "logistic": Logistic,
    "softmax": Softmax,
}
