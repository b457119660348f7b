"""Who took part in a run, and whose memory was whole: what the server saw of it, user by user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pfl_flower.run.checks import Check
from pfl_flower.run.config import RunConfig
from pfl_flower.run.metrics import NODES
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.left_out import LeftOut

TOOK_PART = "every strategic user took part"
MEMORY = "every user's memory was whole"
CHECKS = frozenset({TOOK_PART, MEMORY})
"""Checks on single users, of whom ``rounds.csv`` does not tell."""
NEVER_ASKED = "never asked"
HONEST_NODE = "on a node that is honest"
LOST = "users' memories that were lost, or older than they should be"
UNKEPT = "users' memories that could not be kept on a disk"
VALUE_CHARACTERS = 200


@dataclass
class Attendance:
    """What came of single users over the rounds so far.

    Attributes
    ----------
    heard : set of int
        Strategic users of whom a well-formed report came, whatever was thought of it.
    unheard : dict
        Of strategic users, how often none came, by reason.
    lost : dict
        Of users whose memory was not that of their last report: the round in which that was seen,
        and what they had instead.
    unkept : dict
        Of users whose memory could not be written to a disk: the first round of it.
    """

    heard: set[int] = field(default_factory=set)
    unheard: dict[int, Counter[str]] = field(default_factory=dict)
    lost: dict[int, tuple[int, str]] = field(default_factory=dict)
    unkept: dict[int, int] = field(default_factory=dict)

    def hear(self, users: Iterable[int]) -> None:
        """Note the strategic users of whom a report came."""
        self.heard.update(users)

    def miss(self, user: int, reason: str) -> None:
        """Note that of a strategic user none came."""
        self.unheard.setdefault(user, Counter())[reason] += 1

    def lose(self, round: int, user: int, *, had: int, due: int) -> None:
        """Note that a user had the memory of round ``had``, 0 for none, where ``due`` was due."""
        kept = f"that of round {had}" if had else "none"
        self.lost.setdefault(user, (round, f"{kept} in place of round {due}'s"))

    def not_keep(self, round: int, users: Iterable[int]) -> None:
        """Note users whose memory was not written."""
        for user in users:
            self.unkept.setdefault(user, round)

    def checks(self, config: RunConfig) -> list[Check]:
        """Return that every strategic user took part, and that nobody's memory was lost.

        At a site memory is the nodes' word, and decides nothing.
        """
        found = []
        if named := config.strategic():
            absent = {user: self._absence(user) for user in sorted(named - self.heard)}
            everyone = f"{len(named)} of {len(named)}"
            value = _by_reason(absent) if absent else everyone
            found.append(Check(TOOK_PART, value, everyone, not absent))
        kept = config.checkpoint_every or config.resume
        if not config.site and (kept or self.lost or self.unkept):
            faults = {user: f"not kept from round {at} on" for user, at in self.unkept.items()}
            faults |= {user: why for user, (_, why) in self.lost.items()}
            found.append(Check(MEMORY, _by_reason(faults) or "whole", "whole", not faults))
        return found

    def left_out(self, config: RunConfig) -> list[LeftOut]:
        """Return the memories that were lost or not kept, as the nodes say."""
        word = NODES if config.site else ""
        lost = [f"user {user}, round {at}: {why}" for user, (at, why) in sorted(self.lost.items())]
        unkept = [f"user {user}, round {at}" for user, at in sorted(self.unkept.items())]
        named = ((LOST + word, lost), (UNKEPT + word, unkept))
        return [LeftOut.of(what, names) for what, names in named if names]

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON says it, for a checkpoint."""
        return {
            "heard": sorted(self.heard),
            "unheard": [[user, dict(why)] for user, why in self.unheard.items()],
            "lost": [[user, *seen] for user, seen in self.lost.items()],
            "unkept": [[user, at] for user, at in self.unkept.items()],
        }

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Attendance:
        """Return what ``facts`` returned."""
        return cls(
            heard=set(facts["heard"]),
            unheard={user: Counter(why) for user, why in facts["unheard"]},
            lost={user: (at, why) for user, at, why in facts["lost"]},
            unkept=dict(facts["unkept"]),
        )

    def _absence(self, user: int) -> str:
        return ", ".join(sorted(self.unheard.get(user, ()))) or NEVER_ASKED


def _by_reason(faults: Mapping[int, str]) -> str:
    """Return users and what is wrong, those with the same fault together.

    >>> _by_reason({3: "no-reply", 4: "no-reply", 7: "malformed"})
    'malformed: user 7; no-reply: users 3-4'
    """
    users: dict[str, list[int]] = {}
    for user, why in sorted(faults.items()):
        users.setdefault(why, []).append(user)
    said = [
        f"{why}: user{'s' * (len(who) > 1)} {ranges(who)}" for why, who in sorted(users.items())
    ]
    return one_line("; ".join(said), VALUE_CHARACTERS)


def ranges(numbers: Iterable[int]) -> str:
    """Return ascending numbers as a list with ranges.

    >>> ranges([3, 7, 8, 9]), ranges([])
    ('3,7-9', '')
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
