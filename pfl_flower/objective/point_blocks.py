"""Pieces of a batch of users' points: those of several users, or a block of one user's.

A linear model's gradient needs the features twice, for the scores and for the sum over points. Many
points do not fit in the cache between the two, a piece does. Pieces are shared among threads; where
a user's blocks begin depends on its own data alone, and their sums are added in their order, so
neither the number of threads nor the other users of a node change a bit.
"""

from __future__ import annotations

from torch import Tensor

from pfl_flower.support.threads import each, thread_limit

__all__ = ["BLOCK", "KEPT", "block_slices", "each", "pays", "thread_limit", "user_slices"]

BLOCK = 2**20
"""Numbers of features in a block: 4 MiB in single precision, so that two threads' fit a cache."""
KEPT = 2**19
"""Numbers in a block without zeros. They are read in order, so no cache has to hold them; blocks of
half as many take a tenth longer for their many calls, of a quarter two fifths, and longer ones
leave threads idle where a node has a single user."""
TOGETHER = 2**18
"""Numbers of features of the users whose points are one piece: 2 MiB in double, which a core's
cache holds, and long enough that calls cost little."""


def pays(features: Tensor) -> bool:
    """Whether each user's ``features (k, n, q)`` are on the CPU and fill two blocks or more."""
    # Of one user, not of all: a user's sums must not depend on who else is on the node.
    return features.is_cpu and features.shape[1] * features.shape[2] >= 2 * BLOCK


def block_slices(points: int, numbers: int, most: int) -> list[slice]:
    """Return the blocks of one user's points, with at most so many of all their numbers in each.

    >>> block_slices(5000, 2_500_000, BLOCK)
    [slice(0, 1667, None), slice(1667, 3334, None), slice(3334, 5000, None)]
    """
    # As few blocks as can be, and of equal sizes: a short last one would leave a thread idle.
    size = -(-points // max(1, -(-numbers // most)))
    return [slice(first, min(first + size, points)) for first in range(0, points, size)]


def user_slices(features: Tensor) -> list[slice]:
    """Return users of ``features (k, n, q)`` whose points are one piece; all of them on a card.

    >>> import torch
    >>> user_slices(torch.empty((5, 1000, 100)))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    users, points, inputs = features.shape
    size = max(1, TOGETHER // max(1, points * inputs)) if features.is_cpu else users
    return [slice(first, min(first + size, users)) for first in range(0, users, size)]
