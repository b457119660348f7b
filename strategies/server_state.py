"""The server between two rounds: all that the next round depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pfl_flower.support.users import ids
from strategies.roster import Roster
from strategies.round_record import RoundRecord

UNHEARD = -1


@dataclass
class PastRounds:
    """What the server remembers of past rounds.

    Attributes
    ----------
    last_accepted : Tensor
        Round of each user's last accepted report ``(N,)``, int64, on the CPU; 0 if there is none.
    answered : Tensor
        Round of each user's last well-formed report, accepted or not, ``(N,)``, int64, on the CPU;
        ``UNHEARD`` for those who were asked in vain, 0 for those who never were.
    eta_sum : float
        Sum of the step sizes so far, each times N / users asked where a sample's sum is rescaled.
    honest_sum : Tensor or None
        Sum of the honest gradients ``(d,)`` of the last round.
    """

    last_accepted: Tensor
    answered: Tensor
    eta_sum: float = 0.0
    honest_sum: Tensor | None = None

    @classmethod
    def none(cls, users: int) -> PastRounds:
        """Return what is remembered before the first round."""
        never = torch.zeros(users, dtype=torch.int64)
        return cls(never, never.clone())

    def lost(self, memory: Mapping[int, int]) -> dict[int, tuple[int, int]]:
        """Return the users whose memory is of an earlier round than their last report, and both."""
        due = {user: int(self.answered[user]) for user in memory}
        return {user: (had, due[user]) for user, had in memory.items() if had < due[user]}

    def unheard(self, strategic: frozenset[int]) -> int:
        """Return how many honest users were asked and never sent a well-formed report."""
        found = (self.answered == UNHEARD).nonzero().flatten().tolist()
        return len(set(found) - strategic)

    def add(self, record: RoundRecord, scale: float) -> None:
        """Remember a round, whose step size counted ``scale`` times."""
        self.eta_sum += record.eta * scale
        # Ids are distinct: as many as there are users are all of them.
        everyone = len(record.accepted) == len(self.answered)
        came = slice(None) if everyone else record.accepted.users
        self.last_accepted[came] = record.round
        if record.missing:
            missing = ids(tuple(record.missing))
            self.answered[missing[self.answered[missing] == 0]] = UNHEARD
        self.answered[came] = record.round
        if record.implausible:
            self.answered[ids(record.implausible)] = record.round
        self.honest_sum = record.honest_sum


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """The server after round ``round``: what the next round depends on.

    Attributes
    ----------
    round : int
        t, the last finished round.
    rho : Tensor
        rho_{t+1}, ``(d,)``.
    past : PastRounds
        What is remembered of past rounds.
    optimizer : dict
        The optimiser's tensors by name; none under SGD.
    roster : Roster
        Which node acted for which users.
    memory : dict
        What the aggregation remembers, by name; nothing of a rule of plain rows.
    """

    round: int
    rho: Tensor
    past: PastRounds
    optimizer: dict[str, Tensor]
    roster: Roster
    memory: dict[str, Tensor] = field(default_factory=dict)
