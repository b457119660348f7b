"""The server between two rounds: all that the next round depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pfl_flower.aggregation.rows import ids
from strategies.roster import Roster
from strategies.round_record import RoundRecord

ASKED, HEARD = 1, 2


@dataclass
class PastRounds:
    """What the server remembers of past rounds.

    Attributes
    ----------
    last_accepted : Tensor
        Round of each user's last accepted report ``(N,)``, int64, on the CPU; 0 if there is none.
    eta_sum : float
        Sum of the step sizes so far, each times N / users asked where a sample's sum is rescaled.
    honest_sum : Tensor or None
        Sum of the honest gradients ``(d,)`` of the last round.
    heard : Tensor
        For each user ``(N,)``, int8: 0 never asked, ``ASKED``, or ``HEARD`` once a well-formed
        report came, accepted or not.
    """

    last_accepted: Tensor
    eta_sum: float = 0.0
    honest_sum: Tensor | None = None
    heard: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int8))

    def __post_init__(self) -> None:
        """Begin with whose reports were accepted, where nothing else is known."""
        if len(self.heard) != len(self.last_accepted):
            self.heard = (self.last_accepted > 0).to(torch.int8) * HEARD

    @classmethod
    def none(cls, users: int) -> PastRounds:
        """Return what is remembered before the first round."""
        return cls(torch.zeros(users, dtype=torch.int64))

    def unheard(self, strategic: frozenset[int]) -> int:
        """Return how many honest users were asked and never sent a well-formed report."""
        found = (self.heard == ASKED).nonzero().flatten().tolist()
        return len(set(found) - strategic)

    def add(self, record: RoundRecord, scale: float) -> None:
        """Remember a round, whose step size counted ``scale`` times."""
        self.eta_sum += record.eta * scale
        self.last_accepted[record.accepted.users] = record.round
        missing = ids(record.missing)
        self.heard[missing] = self.heard[missing].clamp(min=ASKED)
        self.heard[record.accepted.users] = HEARD
        self.heard[ids(record.implausible)] = HEARD
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
    """

    round: int
    rho: Tensor
    past: PastRounds
    optimizer: dict[str, Tensor]
    roster: Roster
