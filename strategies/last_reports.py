"""Each strategic user's last report that counted: the gradient that an attack has come to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pfl_flower.aggregation.rows import Rows
from pfl_flower.support.users import among, ids
from strategies.round_record import RoundRecord


class LastReports:
    """What strategic users sent when they were last asked and not rejected.

    Users are asked in different rounds where the server takes samples, and a report can be lost or
    rejected in the last one: each user counts with the last that moved rho, whenever that was.

    Parameters
    ----------
    rows : Rows
        The reports ``(d,)``, by user.
    rounds : Tensor
        The rounds that they are of, ``(m,)``, int64, in the order of the users.
    """

    def __init__(self, rows: Rows | None = None, rounds: Tensor | None = None) -> None:
        self.rows = Rows.none() if rows is None else rows
        self.rounds = ids(()) if rounds is None else rounds

    def add(self, record: RoundRecord) -> None:
        """Take the reports of a round in place of earlier ones of the same users."""
        new = record.strategic_rows
        if not new:
            return
        kept = ~among(self.rows.users, new.users)
        told = torch.full_like(new.users, record.round)
        if not bool(kept.any()):
            self.rows, self.rounds = new, told
            return
        users = torch.cat([self.rows.users[kept], new.users])
        rounds = torch.cat([self.rounds[kept], told])
        self.rounds = rounds[torch.argsort(users)]
        self.rows = Rows.merge([self.rows.select(kept), new])

    def total(self, nothing: Tensor) -> Tensor:
        """Return the sum of the reports, ``(d,)``; ``nothing`` where there never was one."""
        return self.rows.values_by_user.sum(dim=0) if self.rows else nothing

    @property
    def by_user(self) -> Mapping[int, int]:
        """The round of each user's report."""
        return dict(zip(self.rows.users.tolist(), self.rounds.tolist(), strict=True))
