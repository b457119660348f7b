"""Generators for named purposes: a draw depends on the seed and its purpose, not on its turn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

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


def uniform_rows(
    seed: int, purposes: Iterable[tuple[str | int, ...]], count: int, width: int
) -> Tensor:
    """Return ``(count, width)`` uniform float32 draws in [0, 1), a row from each purpose."""
    rows, draw = torch.empty((count, width)), torch.Generator()
    for row, purpose in zip(rows.unbind(), purposes, strict=True):
        row.uniform_(generator=draw.manual_seed(seed_of(seed, *purpose)))
    return rows
