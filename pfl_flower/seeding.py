"""Generators for named purposes: a draw depends on the seed and its purpose, not on its turn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator that is a pure function of ``seed`` and the words of ``purpose``.

    >>> a, b = generator(1, "draw", 0), generator(1, "draw", 1)
    >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
    False
    """
    return torch.Generator().manual_seed(seed_of(seed, *purpose))


def seed_of(seed: int, *purpose: str | int) -> int:
    """Return the seed of a purpose's own generator."""
    name = "/".join(str(word) for word in (seed, *purpose)).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:7], "big")


def user_rows(
    draw: Callable[[torch.Generator, int], object],
    rows: Sequence[Tensor],
    users: Sequence[int],
    name: Callable[[int], tuple[str | int, ...]],
) -> list[Tensor]:
    """Return what ``draw`` puts into ``rows`` for each user, stacked: a generator for many.

    Parameters
    ----------
    draw : callable
        Fills ``rows`` from the generator for the user at a position.
    rows : sequence of Tensor
        Scratch memory for one user.
    users : sequence of int
        Ids.
    name : callable
        From an id to the seed and the words of ``generator``.
    """
    made = [np.empty((len(users), *row.shape), row.numpy().dtype) for row in rows]
    pairs = [(all_, row.numpy()) for all_, row in zip(made, rows, strict=True)]
    source = torch.Generator()
    for position, user in enumerate(users):
        seed, *purpose = name(user)
        source.manual_seed(seed_of(int(seed), *purpose))
        draw(source, position)
        for all_, row in pairs:
            all_[position] = row
    return [torch.from_numpy(all_) for all_ in made]
