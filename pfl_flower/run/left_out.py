"""What a run left out of what nodes sent: by kind, how often, and in which rounds.

Whoever leaves something out in a round counts it as a notice of that round, which ``rounds.csv``
keeps; here it gets its words.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pfl_flower.support.left_out import LeftOut

CANNOT = re.compile(r"cannot-(\d+)")
LOWERED = re.compile(r"lowered-(.+)-(\d+)")
REJECTED, NOTICES = "rejection_reasons", "notices"
"""The columns of ``rounds.csv`` that say ``kind:count;kind:count``."""
WORDS = {
    "stray": "replies to no question of their round",
    "duplicate": "further replies to one question",
    "forged": "replies without the secret of their question, after which the node was asked again",
    "error-reply": "errors in place of a reply, after which the node was asked again",
    "lost": "questions that were never answered, after which the node was asked again",
    "absurd": "entries of nodes' metrics that cannot be",
    "untracked": "rounds that the tracker did not take",
}


def left_out_of_rounds(text: str) -> list[LeftOut]:
    r"""Return what the rounds left out, from the text of ``rounds.csv``.

    >>> print(left_out_of_rounds("round,notices\n1,stray:2\n2,\n3,stray:1\n")[0])
    replies to no question of their round: 3 (rounds 1 to 3)
    """
    counts: dict[tuple[str, str], int] = defaultdict(int)
    rounds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in csv.DictReader(io.StringIO(text, newline="")):
        for column in (REJECTED, NOTICES):
            for event in filter(None, (row.get(column) or "").split(";")):
                kind, _, number = event.rpartition(":")
                counts[column, kind] += int(number)
                rounds[column, kind].append(row["round"])
    return [
        LeftOut(what=_words(*key), count=counts[key], where=_when(rounds[key]))
        for key in sorted(counts)
    ]


def noticed(text: str, kind: str) -> int:
    r"""Return how often the rounds noticed a thing of this kind, from the text of ``rounds.csv``.

    >>> noticed("round,notices\n1,stray:2\n2,\n3,stray:1;absurd:4\n", "stray")
    3
    """
    rows = csv.DictReader(io.StringIO(text, newline=""))
    events = (event for row in rows for event in (row.get(NOTICES) or "").split(";"))
    return sum(int(event.rpartition(":")[2]) for event in events if event.startswith(f"{kind}:"))


def left_out_of_users(text: str) -> list[LeftOut]:
    r"""Return what is not known of honest users, from the text of ``users.csv``.

    >>> text = "user,role,tests,theta,alone\n0,honest,9,0.5,\n1,honest,9,,\n2,strategic,9,,\n"
    >>> for one in left_out_of_users(text):
    ...     print(one)
    users with a test set of their own of whom no node spoke: 1 (user 1)
    users without a model learned alone to compare with: 1 (user 0)
    """
    unknown: dict[str, list[str]] = {"theta": [], "alone": []}
    for row in csv.DictReader(io.StringIO(text, newline="")):
        if row["role"] == "strategic" or row["tests"] == "0":
            continue
        missing = "theta" if not row["theta"] else "alone"
        if not row[missing]:
            unknown[missing].append(f"user {row['user']}")
    words = {
        "theta": "users with a test set of their own of whom no node spoke",
        "alone": "users without a model learned alone to compare with",
    }
    return [LeftOut.of(words[key], names) for key, names in unknown.items() if names]


def _words(column: str, kind: str) -> str:
    if column == REJECTED:
        return f"reports, rejected as {kind}"
    if found := LOWERED.fullmatch(kind):
        return f"rounds with too few reports for the aggregation, {found[1]} lowered to {found[2]}"
    if found := CANNOT.fullmatch(kind):
        return f"nodes that could not take part, as the log says: node {found[1]}"
    return WORDS.get(kind, kind)


def _when(rounds: list[str]) -> str:
    if len(rounds) == 1:
        return f"round {rounds[0]}"
    return f"rounds {rounds[0]} to {rounds[-1]}"


def left_out_of_seeds(seeds: Mapping[str, Sequence[LeftOut]]) -> list[LeftOut]:
    """Return what several seeds left out, by their names: once, what all of them did.

    >>> same, own = LeftOut.of("hidden files", ["a"]), LeftOut.of("replies", ["b"])
    >>> [one.what for one in left_out_of_seeds({"seed-1": [same], "seed-2": [same, own]})]
    ['hidden files', 'seed-2: replies']
    """
    first = next(iter(seeds.values()), ())
    shared = [one for one in first if all(one in found for found in seeds.values())]
    return shared + [
        replace(one, what=f"{name}: {one.what}")
        for name, found in seeds.items()
        for one in found
        if one not in shared
    ]
