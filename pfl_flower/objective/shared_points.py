"""Points that many models are judged on: the test set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from math import ceil

import torch
from torch import Tensor

from pfl_flower.objective.models import Model, accuracy
from pfl_flower.objective.sparse_features import Compressed
from pfl_flower.support.threads import each

SCORES_AT_ONCE = 2**21
"""Scores, or hidden units, held at a time while many models are judged: 16 MiB in double."""
PART, LINE = 2560, 16
"""Most points of a part, which one thread does; parts begin at lines of the cache."""


@dataclass(frozen=True)
class SharedPoints:
    """Features ``(m, q)``, the constant column included, and labels ``(m,)``.

    >>> from pfl_flower.objective.models import Linear
    >>> points = SharedPoints(torch.eye(2), torch.tensor([0, 0]))
    >>> theta = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    >>> points.accuracy_of_each(Linear(inputs=2, outputs=2), theta)
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """

    features: Tensor
    labels: Tensor

    @cached_property
    def _compressed(self) -> Compressed:
        """The features without their zeros."""
        return Compressed(self.features)

    def parts(self, model: Model) -> list[SharedPoints]:
        """Return the points as pieces of work: on the CPU, of our own models, some points each.

        Where they are cut depends on their number alone, whatever the threads.
        """
        return self._cut if model.first_layer and self.features.is_cpu else [self]

    @cached_property
    def _cut(self) -> list[SharedPoints]:
        many = len(self.labels)
        size = LINE * ceil(many / max(1, ceil(many / PART)) / LINE)
        if many <= size:
            return [SharedPoints(self.features, self.labels)]
        pieces = zip(*(torch.split(one, size) for one in (self.features, self.labels)), strict=True)
        return [SharedPoints(*piece) for piece in pieces]

    def scores(self, model: Model, theta: Tensor) -> Tensor:
        """Scores ``(k, m, c)`` of models ``theta (k, d)``."""
        parts = self.parts(model)
        if len(parts) == 1:
            return parts[0].own_scores(model, theta)
        return torch.cat(each(lambda part: part.own_scores(model, theta), [(p,) for p in parts]), 1)

    def own_scores(self, model: Model, theta: Tensor) -> Tensor:
        """Return the same of points that are one part, by one thread."""
        if self._compressed.pays(model.first_layer):
            return model.scores_without_zeros(theta, self._compressed)
        return model.shared_scores(theta, self.features)

    def accuracy_of_each(self, model: Model, theta: Tensor) -> Tensor:
        """Accuracy ``(k,)`` of models ``theta (k, d)``: one a thread; on a card as many as fit."""
        if self.features.is_cpu:
            return torch.cat(
                each(partial(self._accuracies, model), [(one[None],) for one in theta])
            )
        block = max(1, SCORES_AT_ONCE // (len(self.labels) * model.width))
        return torch.cat([self._accuracies(model, part) for part in torch.split(theta, block)])

    def _accuracies(self, model: Model, theta: Tensor) -> Tensor:
        return accuracy(self.scores(model, theta), self.labels)
