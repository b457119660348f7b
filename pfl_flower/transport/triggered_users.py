"""What a trigger does to users' models, as lists in a node's metrics: read as its word."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pfl_flower.run.triggered import Triggered
from pfl_flower.transport.served_users import counts, numbers

USERS, POINTS = "triggered-users", "triggered-points"
SHARES = ("triggered-theta", "triggered-rho")
TRIGGERED_KEYS = frozenset({USERS, POINTS, *SHARES})


def packed_triggered(found: Mapping[int, Triggered]) -> dict[str, list[float] | list[int]]:
    """Return the lists, one entry a user in each."""
    return {
        USERS: list(found),
        POINTS: [one.points for one in found.values()],
        SHARES[0]: [one.theta for one in found.values()],
        SHARES[1]: [one.rho for one in found.values()],
    }


def plausible_triggered(key: str, value: object) -> bool:
    """Whether a node that is not trusted may say this."""
    if key in SHARES:
        return numbers(value, 1)
    return counts(value, least=1 if key == POINTS else 0)


def triggered_users(
    known: Mapping[str, Any], users: Collection[int]
) -> tuple[dict[int, Triggered], int]:
    """Return what a node may say of the users it was asked about, and of how many more it spoke.

    ``known`` are the plausible lists of a reply.
    """
    lists = [known.get(name, []) for name in (USERS, POINTS, *SHARES)]
    asked = frozenset(users) if lists[0] else frozenset()
    found = {
        user: Triggered(points, float(theta), float(rho))
        for user, points, theta, rho in zip(*lists, strict=False)
        if user in asked
    }
    return found, max(map(len, lists)) - len(found)
