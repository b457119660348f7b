"""Sums over a user's points, a block of points at a time: each block is read from memory once.

A linear model's gradient needs the features twice, for the scores and for the sum over points. Many
points do not fit in the cache between the two, a block does. Blocks are shared among threads; where
they begin depends on a user's own data alone, and their sums are added in their order, so neither
the number of threads nor the other users of a node change a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

BLOCK = 2**20
"""Numbers of features in a block: 4 MiB in single precision, so that two threads' fit a cache."""


def pays(features: Tensor) -> bool:
    """Whether each user's ``features (k, n, q)`` are on the CPU and fill two blocks or more."""
    # Of one user, not of all: a user's sums must not depend on who else is on the node.
    return features.is_cpu and features.shape[1] * features.shape[2] >= 2 * BLOCK


def block_slices(features: Tensor) -> list[tuple[slice, slice]]:
    """Return the blocks of ``features (k, n, q)``: one user and some of its points each.

    >>> [points for _, points in block_slices(torch.empty((1, 5000, 500)))]
    [slice(0, 1667, None), slice(1667, 3334, None), slice(3334, 5000, None)]
    """
    # As few blocks as BLOCK allows, and of equal sizes: a short last one would leave a thread idle.
    users, points, inputs = features.shape
    size = -(-points // -(-points * inputs // BLOCK))
    return [
        (slice(user, user + 1), slice(first, min(first + size, points)))
        for user in range(users)
        for first in range(0, points, size)
    ]


def each(work: Callable[..., Tensor], tasks: Sequence[tuple[Any, ...]]) -> list[Tensor]:
    """Return what the tasks give, in their order; as many at once as torch may use threads.

    The threads end with the call: a pool that was kept would not be there in a forked process.
    """
    threads = min(torch.get_num_threads(), len(tasks))
    if threads == 1:
        return [work(*task) for task in tasks]

    # Each thread takes the next free task: one that is held up leaves the rest to others.
    waiting = iter(range(len(tasks)))

    found: dict[int, Tensor] = {}

    def share(_: int) -> None:
        for number in waiting:
            found[number] = work(*tasks[number])

    with (
        thread_limit(1),
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        # What a thread raises comes with its result.
        list(pool.map(share, range(threads)))
    return [found[number] for number in range(len(tasks))]


@contextmanager
def thread_limit(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads within."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
