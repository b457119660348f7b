"""What all messages have in common: the names of their records, and how they carry integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from flwr.app import Array, ConfigRecord, RecordDict
from torch import Tensor

from pfl_flower.support.users import Users, unpacked, users_in
from pfl_flower.transport.wire import bytes_in

ARRAYS, CONFIG = "arrays", "config"
NUMBERS = frozenset({int, float, bool})
FRAME_BYTES = 4096
"""Room in a reply for headers and names."""
WORD_BYTES = 128
"""Of what is said of a user between rounds: up to ten numbers, on test sets of its own."""


def integer(config: ConfigRecord, key: str) -> int:
    """Return an entry that has to be an integer.

    Raises
    ------
    TypeError
        If it is not; KeyError if there is none.
    """
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{key} is {type(value).__name__}: expected an integer")
    return value


def packed(values: Sequence[int] | Tensor) -> bytes:
    """Return numbers as bytes: Flower looks at every entry of a list, several times a message."""
    if isinstance(values, Users):
        return values.packed
    return np.asarray(values, dtype="<i8").tobytes()


def integers(config: ConfigRecord, key: str) -> tuple[int, ...]:
    """Return an entry that has to be ``packed`` integers, or a list of integers.

    Raises
    ------
    TypeError
        If it is not; KeyError if there is none.
    """
    values = config[key]
    if isinstance(values, bytes):
        return users_in(values)
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise TypeError(f"{key} is {type(values).__name__}: expected integers")
    return tuple(values)  # type: ignore[arg-type]


def numbers(config: ConfigRecord, key: str) -> Tensor:
    """Return an entry that has to be integers as a tensor ``(m,)``, int64, not to be written to.

    Raises
    ------
    TypeError
        If it is not; KeyError if there is none.
    """
    values = config[key]
    if isinstance(values, bytes):
        return unpacked(values)
    return torch.tensor(integers(config, key), dtype=torch.int64)


def content_bytes(content: RecordDict) -> int:
    """Return the size of a message's content as it travels, but for a little framing."""
    return sum(
        len(name) + sum(len(key) + _bytes(value) for key, value in record.items())
        for name, record in content.items()
    )


def _bytes(value: object) -> int:
    if isinstance(value, Array):
        return bytes_in(value) + len(value.dtype) + len(value.stype) + 8 * len(value.shape)
    if isinstance(value, list):
        plain = NUMBERS.issuperset(map(type, value))
        return 8 * len(value) if plain else sum(map(_bytes, value))
    return len(value) if isinstance(value, str | bytes) else 8


def largest_words(users: int) -> int:
    """Return the most bytes of a reply without vectors: 128 for each user, and 4096.

    >>> largest_words(2)
    4352
    """
    return users * WORD_BYTES + FRAME_BYTES
