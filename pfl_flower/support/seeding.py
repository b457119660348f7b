"""Generators for named purposes: a draw depends on the seed and its purpose, not on its turn."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the global generators of Python, numpy and torch as the body found them.

    Nothing here draws from them; what somebody's plug-in draws in a trial is not missing later.

    >>> _ = torch.manual_seed(1)
    >>> with undisturbed():
    ...     first = torch.rand(1)
    >>> bool(torch.rand(1) == first)
    True
    """
    python, numbers = random.getstate(), np.random.get_state()
    # Asking a card for its state would start CUDA where nobody has.
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cards = range(torch.cuda.device_count()) if started else ()
    with torch.random.fork_rng(devices=cards):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


TOGETHER = 256
"""Users of consecutive ids whose uniform draws come from one generator."""


def uniform_rows(users: Tensor, width: int, seed: int, *purpose: str | int) -> Tensor:
    """Return uniform draws in [0, 1), ``(k, width)``: a user's depend on its id, not on the others.

    Generators are seeded once for 256 ids, since seeding takes longer than a user's few draws.

    >>> every = uniform_rows(torch.arange(600), 3, 1, "batch")
    >>> bool((uniform_rows(torch.tensor([550, 7]), 3, 1, "batch") == every[[550, 7]]).all())
    True
    """
    groups, place = torch.unique(users // TOGETHER, return_inverse=True)
    drawn = torch.cat(
        [
            torch.rand((TOGETHER, width), generator=generator(seed, *purpose, group))
            for group in groups.tolist()
        ]
    )
    return drawn[place * TOGETHER + users % TOGETHER]


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


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, for somebody's code that uses them.

    Within ``undisturbed`` nothing of it remains.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
