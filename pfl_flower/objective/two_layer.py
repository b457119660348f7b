"""A network of two layers whose gradients are matrix products, some points of a user at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.objective.aligned import aligned
from pfl_flower.objective.models import Model
from pfl_flower.objective.sparse_features import Compressed
from pfl_flower.support.threads import each

POINTS_AT_ONCE = 1024
"""Points whose hidden units are held at a time by a thread, 3 MB of 784 in single precision, and
that it sums over alone: a multiple of 16, so that features begin at a line of the cache."""
TURNED = 2**18
"""Numbers of a user's features, 334 points of 785, from which products without zeros pay: with
fewer, turning the weights around for each product takes as long as it saves."""
Kept = Sequence[Compressed] | None
"""The blocks of a user's points without their zeros, or None where these are not left out."""


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

    @property
    def first_layer(self) -> int:
        """The hidden units."""
        return self.hidden

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

    def scores_without_zeros(self, theta: Tensor, points: Compressed) -> Tensor:
        """One model after the other."""
        return torch.cat([self._forward(one[None], points)[1] for one in theta])

    def backward(
        self,
        theta: Tensor,
        features: Tensor,
        slope: Callable[[Tensor, slice, slice], Tensor],
        kept: Sequence[Kept] = (),
    ) -> Tensor:
        """Return the gradient ``(k, d)`` of a sum over points, some points of a user at a time.

        Parameters
        ----------
        theta, features : Tensor
            ``(k, d)`` and ``(k, n, q)``.
        slope : callable
            From the scores ``(j, p, c)`` of slices of the users and of the points to the sum's
            derivative in them.
        kept : sequence, optional
            For each user the same points without their zeros, see ``without_zeros``.
        """
        blocks, models, points = _blocks(features.shape[1]), aligned(theta), aligned(features)

        def work(users: slice, part: slice) -> Tensor:
            own = kept[users.start] if kept else None
            given = points[users, part] if own is None else own[part.start // POINTS_AT_ONCE]
            return self._pulled(models[users], given, users, part, slope)

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

    def without_zeros(self, features: Tensor) -> list[Kept]:
        """Return for each user of ``features (k, n, q)`` its blocks without zeros, or None.

        None where that does not pay: where few features are 0, and for few points, for which the
        weights would have to be turned around. A user's own features decide. Of none on a card,
        where several users are gone through at once.
        """
        if not features.is_cpu:
            return []
        most = self.first_layer if features.shape[1] * self.inputs >= TURNED else 0
        return [
            [Compressed(own[part]) for part in _blocks(len(own))]
            if Compressed(own).pays(most)
            else None
            for own in features
        ]

    def _forward(self, theta: Tensor, points: Tensor | Compressed) -> tuple[Tensor, Tensor]:
        """Hidden units ``(j, p, h)`` and scores ``(j, p, c)``; without zeros for one user alone."""
        first, second = self.layers(theta)
        if len(theta) == 1:
            first, second = first[0], second[0]
        if isinstance(points, Compressed):
            # A unit's numbers lie side by side, and MKL takes 20 times as long the other way round.
            hidden = torch.relu_(points.scores(first))
            scores = (second[:, :-1] @ hidden.mT).mT + second[:, -1]
        else:
            hidden = torch.relu_((points[0] if len(theta) == 1 else points) @ first.mT)
            scores = hidden @ second[..., :-1].mT + second[..., -1][..., None, :]
        return (hidden[None], scores[None]) if len(theta) == 1 else (hidden, scores)

    def _pulled(
        self,
        theta: Tensor,
        points: Tensor | Compressed,
        users: slice,
        part: slice,
        slope: Callable[[Tensor, slice, slice], Tensor],
    ) -> Tensor:
        """Return a part's gradient ``(j, d)``."""
        hidden, scores = self._forward(theta, points)
        back = slope(scores, users, part)
        output = torch.cat([back.mT @ hidden, back.sum(dim=1)[..., None]], dim=-1)
        weights = self.layers(theta)[1][..., :-1]
        # relu'(0) = 0, as torch has it. (masked_fill_ takes five times as long.)
        if isinstance(points, Compressed):
            back = (weights.mT @ back.mT).mT.mul_(hidden > 0)
            first = points.pull_back(back[0])[None]
        else:
            back = (back @ weights).mul_(hidden > 0)
            first = back.mT @ points
        return torch.cat([first.flatten(1), output.flatten(1)], dim=1)

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
