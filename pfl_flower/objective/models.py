"""Models as flat parameter vectors: a batch of ``k`` users is one tensor of shape ``(k, d)``.

Features carry the constant 1 as their last column where the model has a bias (``augment``), so a
linear layer over ``k`` users is one batched matrix product ``(k, n, q) @ (k, q, c)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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

    @abstractmethod
    def scores(self, theta: Tensor, features: Tensor) -> Tensor:
        """Scores ``(k, n, c)`` of ``theta (k, d)`` on features ``(k, n, q)`` or ``(n, q)``."""

    def shared_scores(self, theta: Tensor, features: Tensor) -> Tensor:
        """Scores ``(k, m, c)`` on points ``(m, q)`` that all models are shown."""
        return self.scores(theta, features)

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

    def scores(self, theta: Tensor, features: Tensor) -> Tensor:
        """One batched product over users; shared features ``(n, q)`` are never copied per user."""
        weights = theta.view(-1, self.outputs, self.inputs)
        # The same sums: few rows times many columns takes MKL a third less than the reverse.
        return (weights @ features.mT).mT

    def shared_scores(self, theta: Tensor, features: Tensor) -> Tensor:
        """One product for all models: they are the rows of one matrix ``(k c, q)``."""
        scores = theta.reshape(-1, self.inputs) @ features.T
        return scores.view(-1, self.outputs, len(features)).transpose(1, 2)

    def initial(self, users: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Zeros: the problem is convex, and 0 favours no class."""
        return torch.zeros((users, self.dim), dtype=dtype)


POINTS_AT_ONCE = 4096
"""Points whose hidden units are held at a time while a gradient is summed: 13 MB of 784 in single
precision, in place of 188 MB for 60,000 points."""


@dataclass(frozen=True)
class TwoLayer(Model):
    """``scores = W2 [relu(W1 x); 1]``, ``hidden`` units, both layers with bias (Appendix C.2).

    ``theta = [vec(W1), vec(W2)]`` with W1 ``(h, q)`` and W2 ``(c, h + 1)``: 784-784-10 gives
    ``785 * 784 + 785 * 10`` parameters.
    """

    hidden: int = 784

    @property
    def dim(self) -> int:
        """``h q + c (h + 1)``."""
        return self.hidden * self.inputs + self.outputs * (self.hidden + 1)

    @property
    def width(self) -> int:
        """The hidden layer."""
        return max(self.hidden + 1, self.outputs)

    def layers(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return views ``W1 (k, h, q)`` and ``W2 (k, c, h + 1)`` of ``theta (k, d)``."""
        first = self.hidden * self.inputs
        return (
            theta[:, :first].view(-1, self.hidden, self.inputs),
            theta[:, first:].view(-1, self.outputs, self.hidden + 1),
        )

    def scores(self, theta: Tensor, features: Tensor) -> Tensor:
        """Two batched products over users."""
        first, second = self.layers(theta)
        hidden = torch.relu_(features @ first.mT)
        return hidden @ second[..., :-1].mT + second[..., -1][..., None, :]

    def backward(
        self, theta: Tensor, features: Tensor, slope: Callable[[Tensor, slice, slice], Tensor]
    ) -> Tensor:
        """Return the gradient ``(k, d)`` of a sum over points, some points at a time.

        Parameters
        ----------
        theta, features : Tensor
            ``(k, d)`` and ``(k, n, q)``.
        slope : callable
            From the scores ``(k, p, c)`` of slices of the users (here all) and of the points to the
            sum's derivative in them.
        """
        gradient = torch.zeros_like(theta)
        (first, second), (first_sum, second_sum) = self.layers(theta), self.layers(gradient)
        for start in range(0, features.shape[1], POINTS_AT_ONCE):
            part = slice(start, start + POINTS_AT_ONCE)
            points = features[:, part]
            hidden = torch.relu_(points @ first.mT)
            scores = hidden @ second[..., :-1].mT + second[..., -1][..., None, :]
            back = slope(scores, slice(None), part)
            second_sum[..., :-1] += back.mT @ hidden
            second_sum[..., -1] += back.sum(dim=1)
            # relu'(0) = 0, as torch has it.
            back = (back @ second[..., :-1]).masked_fill_(hidden == 0, 0.0)
            first_sum += back.mT @ points
        return gradient

    def initial(self, users: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Uniform in ``+-1/sqrt(fan in)`` per layer, as torch.nn.Linear; one draw for all users.

        One draw is shared because permuted hidden units would make rho an average of unlike
        networks.
        """
        theta = torch.rand((1, self.dim), generator=generator, dtype=torch.float64) * 2 - 1
        first, second = self.layers(theta)
        first /= max(self.inputs - 1, 1) ** 0.5
        second /= self.hidden**0.5
        return theta.to(dtype).repeat(users, 1)


def predict(scores: Tensor) -> Tensor:
    """Class of each point: argmax of the scores, or their sign as 1/-1 when there is one score."""
    if scores.shape[-1] == 1:
        return torch.where(scores[..., 0] >= 0, 1, -1)
    # Scores lie class by class; torch finds the largest of a row faster when the row is together.
    return scores.contiguous().argmax(dim=-1)


def accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """Fraction of points whose predicted class is the label: ``(k,)`` for scores ``(k, n, c)``."""
    return (predict(scores) == labels).to(torch.float64).mean(dim=-1)
