"""Test sets that belong to one user each, and what the users' models come to on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pfl_flower.objective.aligned import aligned
from pfl_flower.objective.models import Model, predict
from pfl_flower.objective.shared_points import SCORES_AT_ONCE
from pfl_flower.objective.user_data import Stack, UserData, stack

_Judge = Callable[[Tensor, Tensor], Tensor]
"""From scores ``(k, n, c)`` and labels ``(k, n)`` to what each point counts, ``(k, n)``."""


class OwnPoints:
    """Test sets of ``k`` users, of any sizes.

    Parameters
    ----------
    users : sequence of UserData
        The sets, none of them empty.
    dtype, device
        In which precision and where to compute.

    Examples
    --------
    >>> from pfl_flower.objective.models import Linear
    >>> features, labels = torch.eye(2, dtype=torch.float64), torch.tensor([0, 0])
    >>> users = [UserData(features, labels), UserData(features[:1], labels[:1])]
    >>> points = OwnPoints(users, torch.float64, torch.device("cpu"))
    >>> points.accuracy(Linear(inputs=2, outputs=2), torch.eye(4, dtype=torch.float64)[:2])
    tensor([1., 1.], dtype=torch.float64)
    """

    def __init__(self, users: Sequence[UserData], dtype: torch.dtype, device: torch.device) -> None:
        self.sizes = tuple(len(user.labels) for user in users)
        self._stacks: list[Stack] = [one.to(device) for one in stack(users, dtype)]

    def accuracy(self, model: Model, theta: Tensor) -> Tensor:
        """Fraction of user n's points that ``theta_n (d,)`` classifies as labelled, ``(k,)``."""
        return self._mean(model, theta, lambda scores, labels: predict(scores) == labels)

    def squared_error(self, model: Model, theta: Tensor) -> Tensor:
        """Mean over user n's points of ``(theta_n^T x - y)^2``, ``(k,)``."""
        return self._mean(model, theta, lambda scores, labels: (scores[..., 0] - labels) ** 2)

    def _mean(self, model: Model, theta: Tensor, judge: _Judge) -> Tensor:
        means = torch.empty(len(self.sizes), dtype=torch.float64)
        for one in self._stacks:
            data = one.data
            assert data.weights is not None
            most = max(1, SCORES_AT_ONCE // (data.labels.shape[1] * model.width))
            for first in range(0, len(one.rows), most):
                some = slice(first, first + most)
                rows = one.rows[some]
                values = judge(
                    model.scores(theta[rows], aligned(data.features[some])), data.labels[some]
                )
                # Padding weighs 0.
                total = (values.to(torch.float64) * data.weights[some]).sum(dim=1)
                means[rows.cpu()] = (total / one.sizes[some]).cpu()
        return means
