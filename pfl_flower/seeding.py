"""Generators for named purposes: a draw depends on the seed and its purpose, not on its turn."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator that is a pure function of ``seed`` and the words of ``purpose``.

    >>> a, b = generator(1, "draw", 0), generator(1, "draw", 1)
    >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
    False
    """
    name = "/".join(str(word) for word in (seed, *purpose)).encode()
    digest = hashlib.sha256(name).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
