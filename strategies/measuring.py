"""When local models are measured: with the reports where that can be, else by messages.

A message takes a node of a site a process of its own, and so as long as a round's reports.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pfl_flower.run.config import RunConfig
from strategies.roster import Roster

UsersOf = Mapping[int, tuple[int, ...]]
"""Users by the node that acts for them."""


@dataclass
class Measuring:
    """Who is to say how good local models are, each ``evaluate-every`` rounds and at the end.

    Attributes
    ----------
    config : RunConfig
        Its ``evaluate-every`` and ``rounds``.
    by_user : bool
        Whether what is measured takes the rho that a round ends with, too, on users' own test sets
        or under a trigger. No node has seen that when it reports: then all is asked by messages.
    heard : set of int
        The nodes that said with this round's reports what there is to say.
    """

    config: RunConfig
    by_user: bool
    heard: set[int] = field(default_factory=set)

    def with_reports(self, round: int, roster: Roster, present: Collection[int]) -> UsersOf:
        """Return the honest users whose accuracies are to come with a round's reports."""
        self.heard = set()
        if self.by_user or not self._due(round):
            return {}
        return roster.with_honest_users(present)

    def by_message(self, round: int, roster: Roster, present: Collection[int]) -> UsersOf:
        """Return those who are to be asked after the round: nobody of whom a report has told."""
        if not self._due(round):
            return {}
        return roster.with_honest_users(frozenset(present) - self.heard)

    def _due(self, round: int) -> bool:
        every = self.config.evaluate_every
        return bool(every) and (round % every == 0 or round == self.config.rounds)
