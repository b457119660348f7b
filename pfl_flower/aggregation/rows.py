"""One row ``(d,)`` per user as one tensor ``(m, d)``: a mapping from user ids, ascending."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pfl_flower.support.users import ids


class Rows(Mapping[int, Tensor]):
    """Rows by user, in the order of the user ids whatever the order in which they came.

    Parameters
    ----------
    users : Tensor
        Ids ``(m,)``, int64, on the CPU, without repetition.
    values : Tensor
        The rows, ``(m, ...)``, in the order of ``users``.

    Examples
    --------
    >>> import torch
    >>> rows = Rows(torch.tensor([7, 3]), torch.tensor([[1.0], [2.0]]))
    >>> list(rows), rows[7].tolist(), rows.values_by_user.tolist()
    ([3, 7], [1.0], [[2.0], [1.0]])
    """

    def __init__(self, users: Tensor, values: Tensor) -> None:
        if users.numel() > 1 and not bool((users[1:] > users[:-1]).all()):
            order = torch.argsort(users)
            users, values = users[order], values[order.to(values.device)]
        self.users, self.values_by_user = users, values

    @classmethod
    def ordered(cls, users: Tensor, values: Tensor) -> Rows:
        """Return rows of users whose ids are known to ascend: nobody looks."""
        made = cls.__new__(cls)
        made.users, made.values_by_user = users, values
        return made

    @classmethod
    def none(cls) -> Rows:
        """Return the rows of nobody."""
        return cls(ids(()), torch.zeros((0, 0)))

    @classmethod
    def of(cls, rows: Mapping[int, Tensor]) -> Rows:
        """Return the rows of a mapping from users to tensors of one shape."""
        if not rows:
            return cls.none()
        values = list(rows.values())
        # A row of its own need not be copied.
        return cls(ids(tuple(rows)), torch.stack(values) if len(values) > 1 else values[0][None])

    @classmethod
    def merge(cls, several: Iterable[Rows]) -> Rows:
        """Return the rows of several groups of users who have none in common."""
        parts = [rows for rows in several if rows]
        if len(parts) <= 1:
            return parts[0] if parts else cls.none()
        users = torch.cat([part.users for part in parts])
        return cls(users, torch.cat([part.values_by_user for part in parts]))

    def select(self, index: Tensor) -> Rows:
        """Return the rows at positions, or under a mask, of ``index``."""
        values = self.values_by_user
        if index.dtype != torch.bool:
            return Rows(self.users[index], values[index.to(values.device, non_blocking=True)])
        # A mask that is sent to a card comes back as a number of rows, which has to be waited for.
        places = index.nonzero()[:, 0]
        first, many = int(places[0]) if len(places) else 0, len(places)
        if many == 0 or int(places[-1]) - first == many - 1:
            # Neighbours stay where they are.
            return Rows.ordered(self.users[first : first + many], values[first : first + many])
        chosen = values[places.to(values.device, non_blocking=True)]
        return Rows.ordered(self.users[places], chosen)

    def to(self, device: torch.device) -> Rows:
        """Return the rows on a device; the ids stay on the CPU."""
        return Rows.ordered(self.users, self.values_by_user.to(device))

    def __getitem__(self, user: int) -> Tensor:
        """Return a user's row."""
        position = int(torch.searchsorted(self.users, user))
        if position == len(self.users) or int(self.users[position]) != user:
            raise KeyError(user)
        return self.values_by_user[position]

    def __iter__(self) -> Iterator[int]:
        """Iterate over the user ids, ascending."""
        return iter(self.users.tolist())

    def __len__(self) -> int:
        """Return the number of users."""
        return self.users.numel()


def positions(users: Sequence[int] | Tensor, known: Sequence[int] | Tensor) -> Tensor:
    """Return where each of ``users`` is in ``known``, ascending, and -1 where it is not.

    >>> positions([2, 5, 9], [1, 2, 9]).tolist()
    [1, -1, 2]
    """
    asked, there = _as_tensor(users), _as_tensor(known)
    if len(there) == 0:
        return torch.full_like(asked, -1)
    found = torch.searchsorted(there, asked).clamp(max=len(there) - 1)
    return torch.where(there[found] == asked, found, -1)


def _as_tensor(users: Sequence[int] | Tensor) -> Tensor:
    return ids(users) if isinstance(users, tuple) else torch.as_tensor(users, dtype=torch.int64)
