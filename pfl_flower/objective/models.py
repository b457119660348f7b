"""Models as flat parameter vectors: a batch of ``k`` users is one tensor of shape ``(k, d)``.

Features carry the constant 1 as their last column where the model has a bias (``augment``), so a
linear layer over ``k`` users is one batched matrix product ``(k, n, q) @ (k, q, c)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.objective.aligned import aligned, product
from pfl_flower.support.threads import each


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

    def initial(self, users: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Zeros: the problem is convex, and 0 favours no class."""
        return torch.zeros((users, self.dim), dtype=dtype)


POINTS_AT_ONCE = 1024
"""Points whose hidden units are held at a time by a thread, 3 MB of 784 in single precision, and
that it sums over alone: a multiple of 16, so that features begin at a line of the cache."""


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
        """Two products for each user, or on a card two batched ones."""
        if not features.is_cpu or theta.requires_grad:
            return self._forward(theta, features if features.dim() == 3 else features[None])[1]
        own, models = features.dim() == 3, aligned(theta)
        blocks = _blocks(features.shape[-2])

        def work(user: int, part: slice) -> Tensor:
            points = features[user : user + 1, part] if own else features[None, part]
            return self._forward(models[user : user + 1], points)[1]

        tasks = [(user, part) for user in range(len(models)) for part in blocks]
        found = each(work, tasks)
        many = len(blocks)
        users = [torch.cat(found[n : n + many], dim=1) for n in range(0, len(found), many)]
        return torch.cat(users)

    def backward(
        self, theta: Tensor, features: Tensor, slope: Callable[[Tensor, slice, slice], Tensor]
    ) -> Tensor:
        """Return the gradient ``(k, d)`` of a sum over points, some points of a user at a time.

        Parameters
        ----------
        theta, features : Tensor
            ``(k, d)`` and ``(k, n, q)``.
        slope : callable
            From the scores ``(j, p, c)`` of slices of the users and of the points to the sum's
            derivative in them.
        """
        blocks, models, points = _blocks(features.shape[1]), aligned(theta), aligned(features)

        def work(users: slice, part: slice) -> Tensor:
            return self._pulled(models[users], points[users, part], users, part, slope)

        if not features.is_cpu:
            return _added(
                [work(slice(None), part) for part in _blocks(features.shape[1], card=True)]
            )
        each_user = [slice(user, user + 1) for user in range(len(models))]
        if len(blocks) == 1:
            return torch.cat(each(work, [(user, blocks[0]) for user in each_user]))
        # A user's sums are held together, one for each block; not those of all users.
        sums = [_added(each(work, [(user, part) for part in blocks])) for user in each_user]
        return torch.cat(sums)

    def _forward(self, theta: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden units ``(j, p, h)`` and scores ``(j, p, c)``."""
        first, second = self.layers(theta)
        if len(theta) == 1:
            first, second, points = first[0], second[0], points[0]
        hidden = torch.relu_(points @ first.mT)
        scores = hidden @ second[..., :-1].mT + second[..., -1][..., None, :]
        return (hidden[None], scores[None]) if len(theta) == 1 else (hidden, scores)

    def _pulled(
        self,
        theta: Tensor,
        points: Tensor,
        users: slice,
        part: slice,
        slope: Callable[[Tensor, slice, slice], Tensor],
    ) -> Tensor:
        """Return a part's gradient ``(j, d)``."""
        hidden, scores = self._forward(theta, points)
        back = slope(scores, users, part)
        output = torch.cat([back.mT @ hidden, back.sum(dim=1)[..., None]], dim=-1)
        # relu'(0) = 0, as torch has it.
        back = (back @ self.layers(theta)[1][..., :-1]).masked_fill_(hidden == 0, 0.0)
        return torch.cat([(back.mT @ points).flatten(1), output.flatten(1)], dim=1)

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


def _blocks(points: int, *, card: bool = False) -> list[slice]:
    """Return the points held at a time; on a card, where calls are dear, four times more."""
    size = 4 * POINTS_AT_ONCE if card else POINTS_AT_ONCE
    return [slice(first, min(first + size, points)) for first in range(0, points, size)]


def _added(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of the parts, in their order, in place of the first."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def predict(scores: Tensor) -> Tensor:
    """Class of each point: argmax of the scores, or their sign as 1/-1 when there is one score."""
    if scores.shape[-1] == 1:
        return torch.where(scores[..., 0] >= 0, 1, -1)
    # Scores lie class by class; torch finds the largest of a row faster when the row is together.
    return (scores.contiguous() if scores.is_cpu else scores).argmax(dim=-1)


def accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """Fraction of points whose predicted class is the label: ``(k,)`` for scores ``(k, n, c)``."""
    return (predict(scores) == labels).to(torch.float64).mean(dim=-1)
