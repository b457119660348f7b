"""Users' datasets as tensors: users of nearly equal sizes in one stack, padded with weight 0."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class UserData:
    """A user's features ``(n, q)``, labels ``(n,)`` or ``(n, c)``, weights ``(n,)`` (None: 1).

    Of several users with equally many points, each with one leading axis more.
    """

    features: Tensor
    labels: Tensor
    weights: Tensor | None = None

    def to(self, device: torch.device) -> UserData:
        """Return the same on a device."""
        weights = None if self.weights is None else self.weights.to(device)
        return UserData(self.features.to(device), self.labels.to(device), weights)


def padded_size(points: int) -> int:
    """Points after padding: a function of the user's own size alone, at most an eighth more.

    >>> [padded_size(n) for n in (1, 10, 17, 500, 60000)]
    [1, 10, 18, 512, 61440]
    """
    # Sizes keep their four leading binary digits: few stacks for users of many sizes.
    step: int = 2 ** max(0, int(math.log2(max(points, 1))) - 3)
    return math.ceil(points / step) * step


@dataclass(frozen=True)
class Stack:
    """Users of equal padded size ``n``.

    Attributes
    ----------
    rows, sizes : Tensor
        Positions among all users, ascending, and true sizes, ``(k,)``.
    data : UserData
        Features ``(k, n, q)``, labels ``(k, n)`` or ``(k, n, c)``, weights ``(k, n)``.
    """

    rows: Tensor
    sizes: Tensor
    data: UserData

    @classmethod
    def join(cls, parts: Sequence[tuple[Sequence[int], UserData]], dtype: torch.dtype) -> Stack:
        """Return users of one padded size: rows, with data stacked where sizes are equal."""
        rows = torch.tensor([row for some, _ in parts for row in some])
        sizes = torch.cat([torch.full((len(some),), data.labels.shape[1]) for some, data in parts])
        order = torch.argsort(rows)
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order))
        padded = padded_size(int(sizes.max()))
        columns: list[Tensor] = []
        for field, kind in (("features", dtype), ("labels", None), ("weights", dtype)):
            filled, first = [], 0
            for some, data in parts:
                value = getattr(data, field)
                value = torch.ones(data.labels.shape[:2]) if value is None else value
                filled.append((places[first : first + len(some)], value))
                first += len(some)
            columns.append(_fill(filled, len(rows), padded, kind))
        labels = columns[1].to(dtype) if columns[1].is_floating_point() else columns[1]
        return cls(rows[order], sizes[order], UserData(columns[0], labels, columns[2]))

    def to(self, device: torch.device) -> Stack:
        """Return the same on a device."""
        return Stack(self.rows.to(device), self.sizes.to(device), self.data.to(device))


def _fill(
    parts: Sequence[tuple[Tensor, Tensor]], users: int, points: int, dtype: torch.dtype | None
) -> Tensor:
    """Return ``(users, points, ...)``: values at their places, and 0; no copy where none is due."""
    value = parts[0][1]
    dtype = dtype or value.dtype
    if len(parts) == 1 and value.shape[:2] == (users, points):
        return value.to(dtype)
    filled = torch.zeros((users, points, *value.shape[2:]), dtype=dtype)
    for places, one in parts:
        if len(parts) == 1:
            filled[:, : one.shape[1]] = one
        else:
            filled[places, : one.shape[1]] = one.to(dtype)
    return filled


def stack(users: Sequence[UserData], dtype: torch.dtype) -> list[Stack]:
    """Return datasets of any sizes as stacks, the smallest first."""
    by_size: dict[int, list[tuple[Sequence[int], UserData]]] = defaultdict(list)
    # By size and then by row: an order that the data alone decide.
    for row, user in enumerate(users):
        weights = None if user.weights is None else user.weights[None]
        one = UserData(user.features[None], user.labels[None], weights)
        by_size[padded_size(len(user.features))].append(((row,), one))
    return [Stack.join(parts, dtype) for _, parts in sorted(by_size.items())]
