"""What the scores of one point cost: least squares, logistic and softmax cross-entropy."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

CERTAIN = 40
"""Score beyond which softplus is taken for the identity: what that leaves out, e^-40, is below the
last digit of 40 in double precision; at torch's default of 20 it is 2e-9, a step that a line search
sees."""


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
        return functional.softplus(-labels * scores[..., 0], threshold=CERTAIN)

    def gradient(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return ``-A sigma(-A s)``."""
        return (-labels * torch.sigmoid(-labels * scores[..., 0]))[..., None]

    def curvature(self, scores: Tensor, direction: Tensor) -> Tensor:
        """``sigma(s) sigma(-s)`` times the direction."""
        return self.factors(scores)[0] * direction

    def factors(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``a = sigma(s) sigma(-s)``."""
        # Not p (1 - p), which is 0 from a score of 37 on, where p rounds to 1.
        return torch.sigmoid(scores) * torch.sigmoid(-scores), None

    @property
    def curvature_bound(self) -> float:
        """1/4, at a score of 0."""
        return 0.25


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last axis, in the order in which the scores lie in memory."""
    if scores.dim() > 1 and scores.mT.is_contiguous():
        return torch.softmax(scores.mT, dim=-2).mT
    return torch.softmax(scores, dim=-1)


class Softmax(PointLoss):
    """Cross-entropy ``-sum_a y_a ln softmax_a(s)``.

    Labels are class numbers ``(..., n)`` or distributions over classes ``(..., n, c)``.
    """

    def values(self, scores: Tensor, labels: Tensor) -> Tensor:
        """``logsumexp(s) - <y, s>``."""
        # Largest score taken out first, or exp overflows from 710 on (89 in single precision).
        log_norm = torch.logsumexp(scores, dim=-1)
        if labels.is_floating_point():
            return log_norm - (labels * scores).sum(dim=-1)
        return log_norm - scores.gather(-1, labels[..., None])[..., 0]

    def gradient(self, scores: Tensor, labels: Tensor) -> Tensor:
        """``softmax(s) - y``."""
        probabilities = _softmax(scores)
        if labels.is_floating_point():
            return probabilities - labels
        # One entry of each row changes: no one-hot matrix as large as the scores is made.
        minus_one = probabilities.new_full((), -1.0).expand((*labels.shape, 1))
        return probabilities.scatter_add_(-1, labels[..., None], minus_one)

    def curvature(self, scores: Tensor, direction: Tensor) -> Tensor:
        """``p * v - p <p, v>``."""
        probabilities = _softmax(scores)
        weighted = probabilities * direction
        return weighted - probabilities * weighted.sum(dim=-1, keepdim=True)

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
