"""Ids of many users, as a tuple that works out once what rounds ask of it again and again.

A node is told the same users every round, and a server seats the same users on it. To hash, compare
or write a tuple of 100,000 numbers takes about a millisecond each; here it is done once for each
set of ids, whatever the number of messages that name it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property, lru_cache
from threading import Lock

import numpy as np
import torch
from torch import Tensor

REMEMBERED_BYTES = 8 * 2**20
"""Of lists that are kept, as bytes: those of a million users; longer ones are read each time."""


class Users(tuple[int, ...]):
    """Ids in the order in which they are given, equal to a plain tuple of them, and not changed.

    Examples
    --------
    >>> users = Users((3, 7))
    >>> users == (3, 7), hash(users) == hash((3, 7)), users.tensor.tolist(), len(users.packed)
    (True, True, [3, 7], 16)
    """

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()

    _packed: bytes | None = None

    @property
    def packed(self) -> bytes:
        """The ids as little-endian integers of eight bytes."""
        if self._packed is None:
            self._packed = np.asarray(self, dtype="<i8").tobytes()
        return self._packed

    @classmethod
    def unpack(cls, packed: bytes) -> Users:
        """Return the ids in bytes, which are remembered with them."""
        found = cls(np.frombuffer(packed, dtype="<i8").tolist())
        found._packed = packed
        return found

    @cached_property
    def tensor(self) -> Tensor:
        """The ids ``(m,)``, int64, on the CPU; not to be written to."""
        return unpacked(self.packed)

    def __hash__(self) -> int:
        """Return the hash of the plain tuple."""
        return self._hash

    def __eq__(self, other: object) -> bool:
        """Compare as tuples; two of this class by their bytes."""
        if self is other:
            return True
        return self.packed == other.packed if isinstance(other, Users) else super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        """Compare as tuples."""
        return not self == other

    def __reduce__(self) -> tuple[type[Users], tuple[tuple[int, ...]]]:
        """Leave a process as the ids alone."""
        return Users, (tuple(self),)


class _Known:
    """The latest lists of ids, each once, up to so many bytes in all."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self._users: dict[bytes, Users] = {}
        self._lock = Lock()

    def of(self, packed: bytes) -> Users:
        """Return the ids in these bytes: the same object for the same bytes, while it is kept."""
        with self._lock:
            found = self._users.pop(packed, None)
            if found is None:
                found = Users.unpack(packed)
                if len(packed) > self.most:
                    return found
                self.bytes += len(packed)
            # Taken out and put back, the latest are the last.
            self._users[found.packed] = found
            while self.bytes > self.most:
                oldest = next(iter(self._users))
                del self._users[oldest]
                self.bytes -= len(oldest)
            return found


_known = _Known(REMEMBERED_BYTES)


def users_in(packed: bytes) -> Users:
    """Return the ids in bytes, as ``Users.packed`` are."""
    return _known.of(packed)


def users_of(values: Iterable[int] | Tensor) -> Users:
    """Return ids as the one ``Users`` that there is of them.

    >>> users_of([3, 7]) is users_of(torch.tensor([3, 7]))
    True
    """
    if isinstance(values, Users):
        return values
    if isinstance(values, Tensor):
        return users_in(values.numpy().astype("<i8", copy=False).tobytes())
    return users_in(np.fromiter(values, dtype="<i8").tobytes())


def unpacked(packed: bytes) -> Tensor:
    """Return little-endian integers of eight bytes as a tensor ``(m,)``, not to be written to."""
    if not packed:
        return torch.zeros(0, dtype=torch.int64)
    return torch.from_numpy(np.frombuffer(packed, dtype="<i8").astype(np.int64))


@lru_cache(maxsize=64)
def _ids(users: tuple[int, ...]) -> Tensor:
    return torch.tensor(users, dtype=torch.int64)


def ids(users: tuple[int, ...]) -> Tensor:
    """Return user ids as a tensor ``(m,)``, int64, which is not to be written to."""
    return users.tensor if isinstance(users, Users) else _ids(users)


@lru_cache(maxsize=16)
def ascending(users: frozenset[int]) -> Tensor:
    """Return the ids of a set, ascending, ``(m,)``, int64, not to be written to."""
    return torch.tensor(sorted(users), dtype=torch.int64)


def among(users: Tensor, some: Tensor) -> Tensor:
    """Return which of ``users`` are in ``some``, a mask ``(m,)``; both ascending.

    The shorter is looked up in the longer: a few users among many cost next to nothing.

    >>> among(torch.tensor([1, 4, 6]), torch.tensor([4, 5])).tolist()
    [False, True, False]
    """
    if len(some) == 0 or len(users) == 0:
        return torch.zeros(len(users), dtype=torch.bool)
    if torch.equal(users, some):
        return torch.ones(len(users), dtype=torch.bool)
    if len(some) > len(users):
        return some[torch.searchsorted(some, users).clamp(max=len(some) - 1)] == users
    places = torch.searchsorted(users, some).clamp(max=len(users) - 1)
    found = torch.zeros(len(users), dtype=torch.bool)
    found[places[users[places] == some]] = True
    return found


def selected(users: tuple[int, ...], some: Tensor) -> Users:
    """Return those of ``users`` who are in ``some``, both ascending: all of them as they are."""
    known = users_of(users)
    mask = among(known.tensor, some)
    return known if bool(mask.all()) else users_of(known.tensor[mask])


def divided(users: tuple[int, ...], some: frozenset[int]) -> tuple[Users, Users]:
    """Return those of ``users``, ascending, who are in ``some``, and those who are not."""
    return _divided(users_of(users), some)


@lru_cache(maxsize=64)
def _divided(users: Users, some: frozenset[int]) -> tuple[Users, Users]:
    mask = among(users.tensor, ascending(some))
    return users_of(users.tensor[mask]), users_of(users.tensor[~mask])
