"""What an attacker may be given, from least to most; every output of a run says which it was."""

from __future__ import annotations

from typing import Literal

Knowledge = Literal["own", "surrogates", "rule", "omniscient"]

KNOWLEDGE: dict[Knowledge, str] = {
    "own": "rho, eta, and data of the attacker's own",
    "surrogates": "besides, honest reports on datasets that it draws itself",
    "rule": "besides, the server's rule with f and its other parameters, and the norm limit",
    "omniscient": "besides, the honest reports of this round, before it answers",
}
"""Each level holds those before it. The last is a laboratory's: no participant of a site has it."""
EVERY: tuple[Knowledge, ...] = tuple(KNOWLEDGE)


def knows_rule(knowledge: str) -> bool:
    """Whether the server's rule is known.

    >>> [level for level in KNOWLEDGE if knows_rule(level)]
    ['rule', 'omniscient']
    """
    return knowledge in EVERY[2:]
