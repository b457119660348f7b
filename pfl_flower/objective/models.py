"""Models as flat parameter vectors: a batch of ``k`` users is one tensor of shape ``(k, d)``.

Features carry the constant 1 as their last column where the model has a bias (``augment``), so a
linear layer over ``k`` users is one batched matrix product ``(k, n, q) @ (k, q, c)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.objective.aligned import aligned, product
from pfl_flower.objective.sparse_features import Compressed


def augment(features: Tensor) -> Tensor:
    """Append the constant feature 1: ``(..., p) -> (..., p + 1)``."""
    return torch.cat([features, features.new_ones((*features.shape[:-1], 1))], dim=-1)


@dataclass(frozen=True)
class Model(ABC):
    """A map from a flat parameter vector and features to scores.

    Parameters
    ----------
    inputs : int
        Number of features q, the constant one included when the model has a bias.
    outputs : int
        Number of scores c: classes, or 1 for regression and binary classification.
    """

    inputs: int
    outputs: int

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number of parameters d."""

    @property
    def width(self) -> int:
        """Most numbers that one point takes on its way through the model."""
        return self.outputs

    @property
    def first_layer(self) -> int:
        """Numbers that a point's features are multiplied into; 0 where zeros cannot be left out."""
        return 0

    @abstractmethod
    def scores(self, theta: Tensor, features: Tensor) -> Tensor:
        """Scores ``(k, n, c)`` of ``theta (k, d)`` on features ``(k, n, q)`` or ``(n, q)``."""

    def shared_scores(self, theta: Tensor, features: Tensor) -> Tensor:
        """Scores ``(k, m, c)`` on points ``(m, q)`` that all models are shown."""
        return self.scores(theta, features)

    def scores_without_zeros(self, theta: Tensor, points: Compressed) -> Tensor:
        """Return the same on ``m`` points whose zeros are left out, if there is a first layer."""
        raise NotImplementedError

    @abstractmethod
    def initial(self, users: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Return starting parameters ``(users, d)``, drawn on the CPU whatever the device."""


class Linear(Model):
    """``scores = X W^T`` with ``theta = vec(W)``, W of shape ``(c, q)``, row by row; starts at 0.

    >>> import torch
    >>> Linear(inputs=2, outputs=1).scores(torch.tensor([[1.0, 2.0]]), torch.tensor([[[3.0, 4.0]]]))
    tensor([[[11.]]])
    """

    @property
    def dim(self) -> int:
        """``c q``."""
        return self.inputs * self.outputs

    @property
    def first_layer(self) -> int:
        """All of it."""
        return self.outputs

    def scores(self, theta: Tensor, features: Tensor) -> Tensor:
        """One batched product over users; shared features ``(n, q)`` are never copied per user."""
        weights = theta.view(-1, self.outputs, self.inputs)
        # The same sums: few rows times many columns takes MKL a third less than the reverse.
        if features.dim() == 2:
            return (weights @ features.T).mT
        own = features if len(features) == 1 else aligned(features)
        return product(weights, own, transposed=True).mT

    def shared_scores(self, theta: Tensor, features: Tensor) -> Tensor:
        """One product for all models on a card, their rows in one matrix ``(k c, q)``."""
        if features.is_cpu:
            weights = aligned(theta.view(-1, self.outputs, self.inputs))
            return torch.stack([one @ features.T for one in weights]).mT
        scores = theta.reshape(-1, self.inputs) @ features.T
        return scores.view(-1, self.outputs, len(features)).transpose(1, 2)

    def scores_without_zeros(self, theta: Tensor, points: Compressed) -> Tensor:
        """One product for each model."""
        weights = theta.view(-1, self.outputs, self.inputs)
        # Stacked as they lie, class by class, as losses take them.
        return torch.stack([points.scores(one).T for one in weights]).mT

    def initial(self, users: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Zeros: the problem is convex, and 0 favours no class."""
        return torch.zeros((users, self.dim), dtype=dtype)


def predict(scores: Tensor) -> Tensor:
    """Class of each point: argmax of the scores, or their sign as 1/-1 when there is one score."""
    if scores.shape[-1] == 1:
        return torch.where(scores[..., 0] >= 0, 1, -1)
    # Scores lie class by class; torch finds the largest of a row faster when the row is together.
    return (scores.contiguous() if scores.is_cpu else scores).argmax(dim=-1)


def accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """Fraction of points whose predicted class is the label: ``(k,)`` for scores ``(k, n, c)``."""
    return (predict(scores) == labels).to(torch.float64).mean(dim=-1)
