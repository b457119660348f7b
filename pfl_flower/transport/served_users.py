"""How well users are served, as lists in a node's metrics: written by nodes, read as their word."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pfl_flower.run.served import Served

NUMBERS = ("served-train", "served-tests")
VALUES = ("served-theta", "served-rho")
USERS, ALONE_USERS, ALONE = "served-users", "alone-users", "served-alone"
SERVED_KEYS = frozenset({USERS, *NUMBERS, *VALUES, ALONE_USERS, ALONE})
"""One list for all users who were measured, and two for those who have a model learned alone."""
LARGEST = 1e30
"""Of an error; sums of many stay finite."""
MOST_POINTS = 2**31


def packed_served(served: Mapping[int, Served]) -> dict[str, list[float] | list[int]]:
    """Return the lists."""
    users = list(served.values())
    lists: dict[str, list[float] | list[int]] = {
        USERS: list(served),
        "served-train": [one.train for one in users],
        "served-tests": [one.tests for one in users],
        "served-theta": [one.theta for one in users],
        "served-rho": [one.rho for one in users],
    }
    alone = {user: one.alone for user, one in served.items() if one.alone is not None}
    if alone:
        lists |= {ALONE_USERS: list(alone), ALONE: list(alone.values())}
    return lists


def plausible_list(key: str, value: object) -> bool:
    """Whether a node that is not trusted may say this."""
    return numbers(value, LARGEST) if key in (*VALUES, ALONE) else counts(value)


def numbers(value: object, most: float) -> bool:
    """Whether this is a list of numbers from 0 to ``most``; NaN is not among them."""
    return isinstance(value, list) and all(0 <= entry <= most for entry in value)


def counts(value: object, least: int = 0) -> bool:
    """Whether this is a list of whole numbers from ``least``, such as points or users' ids."""
    return isinstance(value, list) and all(
        isinstance(entry, int) and least <= entry < MOST_POINTS for entry in value
    )


def served_users(
    known: Mapping[str, Any], users: Collection[int], most: float
) -> tuple[dict[int, Served], int]:
    """Return what a node may say of the users it was asked about, and of how many more it spoke.

    Parameters
    ----------
    known : mapping
        The plausible lists of a reply.
    users : collection of int
        Who was asked about.
    most : float
        The largest value that there can be.
    """
    said = known.get(USERS, [])
    asked = frozenset(users) if said else frozenset()
    lists = [known.get(name, []) for name in (*NUMBERS, *VALUES)]
    alone = dict(zip(known.get(ALONE_USERS, []), known.get(ALONE, []), strict=False))
    found: dict[int, Served] = {}
    for user, train, tests, theta, rho in zip(said, *lists, strict=False):
        own = alone.get(user)
        if user in asked and max(theta, rho, own or 0.0) <= most and tests > 0:
            found[user] = Served(train, tests, float(theta), float(rho), own)
    return found, max(map(len, (said, *lists, alone))) - len(found)
