"""The points of a batch of users, and sums over them: some users at a time, or a user's block.

A linear model's sums over points are matrix products with the features X, ``S = X W^T`` for scores
and ``S^T X`` for gradients; where a user has many points they are made a block at a time, and where
most features are zero without these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from pfl_flower.objective import point_blocks
from pfl_flower.objective.aligned import aligned, product
from pfl_flower.objective.models import Linear, Model
from pfl_flower.objective.sparse_features import Compressed
from pfl_flower.support.threads import one_thread

ALL = slice(None)


@dataclass(frozen=True, kw_only=True)
class WeightedPoints:
    """Points of ``k`` users who hold (after padding with weight 0) the same number ``n`` of them.

    Parameters
    ----------
    model : Model
        What maps a theta to scores.
    features : Tensor
        ``(k, n, q)``, the constant column included.
    labels : Tensor
        ``(k, n)``, or ``(k, n, c)`` for soft labels.
    weights : Tensor
        ``(k, n)``, non-negative; 0 for padding.
    scale : Tensor
        ``(k,)``: 1 for a sum, 1/sum(w) for a mean.
    compress : bool
        Whether a linear model's products leave out the zeros of users with many points, where most
        features are zero. That takes as long as some twenty gradients, once.
    compressed : Compressed, optional
        The features of one user, without their zeros.
    blocks : list, optional
        The blocks of the points, where they were made before: compressing takes long.
    """

    model: Model
    features: Tensor
    labels: Tensor
    weights: Tensor
    scale: Tensor
    compress: bool = True
    compressed: Compressed | None = None
    blocks: list[tuple[slice, Self]] | None = None

    @property
    def users(self) -> int:
        """Number of users k."""
        return self.features.shape[0]

    def select(self, index: Tensor | slice) -> Self:
        """Return the same for the users at ``index`` (a slice copies nothing)."""
        blocks = None
        if self.compress and self._in_blocks:
            own: dict[int, list[Self]] = {}
            for users, part in self._blocks:
                own.setdefault(users.start, []).append(part)
            blocks = [
                (slice(new, new + 1), part)
                for new, user in enumerate(torch.arange(self.users)[index].tolist())
                for part in own[user]
            ]
        some = replace(
            self,
            features=aligned(self.features[index]),
            labels=self.labels[index],
            weights=self.weights[index],
            scale=self.scale[index],
            blocks=blocks,  # type: ignore[arg-type]  # mypy takes the Self of a field for its class
        )
        if vars(self).get("plain"):
            # What is so of all need not be looked at again, for which a card is waited for.
            object.__setattr__(some, "plain", True)
        return some

    def block(self, users: slice, points: slice) -> Self:
        """Return some points of some users, with the users' own scales."""
        return replace(
            self,
            features=self.features[users, points],
            labels=self.labels[users, points],
            weights=self.weights[users, points],
            scale=self.scale[users],
            blocks=None,
        )

    def to(self, dtype: torch.dtype) -> Self:
        """Return the same in another precision; itself if it has it."""
        if self.features.dtype == dtype:
            return self
        soft = self.labels.is_floating_point()
        return replace(
            self,
            features=aligned(self.features.to(dtype)),
            labels=self.labels.to(dtype) if soft else self.labels,
            weights=self.weights.to(dtype),
            scale=self.scale.to(dtype),
            blocks=None,
        )

    def minibatch(self, index: Tensor, sizes: Tensor) -> Self:
        """Estimate from points ``index (k, b)``, unbiased when uniform among ``sizes (k,)``."""
        rows = torch.arange(self.users, device=index.device)[:, None]
        # A sum over all of a user's points, estimated from b of them; padding is never drawn.
        stretch = (sizes / index.shape[1]).to(self.weights.dtype)[:, None]
        return replace(
            self,
            features=aligned(self.features[rows, index]),
            labels=self.labels[rows, index],
            weights=self.weights[rows, index] * stretch,
            # Used once: compressing takes longer than it saves.
            compress=False,
            blocks=None,
        )

    @cached_property
    def point_weights(self) -> Tensor:
        """``s_n w_x``, ``(k, n)``."""
        return self.weights * self.scale[:, None]

    @cached_property
    def plain(self) -> bool:
        """Whether every point counts for 1."""
        return bool((self.point_weights == 1).all())

    def scores(self, theta: Tensor) -> Tensor:
        """Scores ``(k, n, c)`` of ``theta (k, d)``."""
        if self.compressed is None:
            return self.model.scores(theta, self.features)
        return self.compressed.scores(theta.view(-1, self.model.inputs))[None]

    def pull_back(self, slopes: Tensor) -> Tensor:
        """``s_n sum_x w_x t_x Q^T`` for ``slopes (k, n, c)`` of the points, ``(k, d)``."""
        # A product with ones would read and write all slopes for nothing.
        weighted = slopes if self.plain else slopes * self.point_weights[..., None]
        if self.compressed is not None:
            return self.compressed.pull_back(weighted[0]).reshape(1, -1)
        return product(weighted.mT, self.features).reshape(self.users, -1)

    def each_part(self, work: Callable[[slice, Self], Tensor]) -> list[Tensor]:
        """Return what ``work`` gives for the parts, in their order."""
        return point_blocks.each(work, self.parts)

    def sum_parts(self, work: Callable[..., Tensor], *more: Sequence[Tensor]) -> Tensor:
        """Return a sum over points, ``(k, ...)``, of what ``work`` gives for the parts.

        Parameters
        ----------
        work : callable
            From the slice of users whose points a part has, the part, and its item of each of
            ``more``, to a sum ``(users, ...)`` over the part's points.
        more
            Lists as ``each_part`` returns them.
        """
        parts = self.parts
        tasks = [(*part, *rest) for part, *rest in zip(parts, *more, strict=True)]
        with one_thread():
            found = point_blocks.each(work, tasks)
            if not self._in_blocks:
                return found[0] if len(found) == 1 else torch.cat(found)
            # Blocks are added in the order of a user's points, whichever thread was done first,
            # and number by number: a sum of torch's has an order that depends on the column.
            totals: list[Tensor] = []
            for (users, _), own in zip(parts, found, strict=True):
                if users.start == len(totals):
                    totals.append(own)
                else:
                    totals[-1] = totals[-1] + own
            return torch.cat(totals)

    @property
    def parts(self) -> list[tuple[slice, Self]]:
        """Pieces of a linear model's work on the CPU, with their users; or all at once.

        Blocks of points where a user has many, else some users at a time.
        """
        # A list that names the points themselves is not kept: the cycle would hold on to the data.
        if self._in_blocks:
            return self._blocks
        return self._groups or [(ALL, self)]

    @property
    def _in_blocks(self) -> bool:
        # Other models cut their work themselves, or come from torch.func, which does not follow
        # into threads.
        return isinstance(self.model, Linear) and point_blocks.pays(self.features)

    @cached_property
    def _groups(self) -> list[tuple[slice, Self]]:
        """Some users at a time; none where all of them are one piece."""
        slices = point_blocks.user_slices(self.features)
        if len(slices) == 1 or not isinstance(self.model, Linear):
            return []
        return [(users, self.select(users)) for users in slices]

    @cached_property
    def _blocks(self) -> list[tuple[slice, Self]]:
        if self.blocks is not None:
            return self.blocks
        return [
            (slice(user, user + 1), part)
            for user in range(self.users)
            for part in self._blocks_of(user)
        ]

    def _blocks_of(self, user: int) -> list[Self]:
        """Return one user's points, cut by its own data alone: without the zeros if that pays.

        Padding, which stands last, is left out: then all points may weigh 1.
        """
        weighty = self.weights[user].nonzero()
        last = int(weighty[-1]) if len(weighty) else 0
        own, features = slice(user, user + 1), self.features[user, : last + 1]
        whole = Compressed(features)
        if not (self.compress and whole.pays(self.model.outputs)):
            numbers, most = features.numel(), point_blocks.BLOCK
            slices = point_blocks.block_slices(len(features), numbers, most)
            return [self.block(own, points) for points in slices]
        slices = point_blocks.block_slices(len(features), whole.count, point_blocks.KEPT)
        parts = [self.block(own, points) for points in slices]
        return [replace(part, compressed=Compressed(part.features[0])) for part in parts]
