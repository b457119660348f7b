"""What nodes are asked between rounds: who they are, and how good their users' models are."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from pfl_flower.support.tokens import fresh
from pfl_flower.transport.broadcasts import unpack_rho
from pfl_flower.transport.nonces import NONCE
from pfl_flower.transport.records import (
    ARRAYS,
    CONFIG,
    content_bytes,
    integer,
    integers,
    largest_words,
    packed,
)
from pfl_flower.transport.wire import find

ROLES = ("auto", "honest", "strategic")


def pack_question(round: int, users: tuple[int, ...], rho: ArrayRecord | None = None) -> RecordDict:
    """Return the content of a question about a round, some users and, perhaps, rho."""
    said = ConfigRecord({"round": round, "users": packed(users), NONCE: fresh()})
    content = RecordDict({CONFIG: said})
    if rho is not None:
        content[ARRAYS] = rho
    return content


def unpack_question(content: RecordDict) -> tuple[int, tuple[int, ...]]:
    """Return the round and the users of a question."""
    config = content.config_records[CONFIG]
    return integer(config, "round"), integers(config, "users")


def asked_rho(content: RecordDict) -> Tensor | None:
    """Return the rho ``(d,)`` that a question is about, None if it is about none."""
    arrays = find(content, ARRAYS, ArrayRecord)
    return None if arrays is None else unpack_rho(arrays)


@dataclass(frozen=True)
class Introduction:
    """What a node says of itself.

    Attributes
    ----------
    role : str
        What it was started as.
    holds : frozenset of int
        The users whose memory it has on its disk.
    absurd : int
        Entries that the server left out.
    """

    role: str = "auto"
    holds: frozenset[int] = frozenset()
    absurd: int = 0


def pack_introduction(said: Introduction) -> RecordDict:
    """Return the content of a node's introduction."""
    return RecordDict({CONFIG: ConfigRecord({"role": said.role, "holds": sorted(said.holds)})})


def unpack_introduction(content: RecordDict, users: int) -> Introduction:
    """Return what a node that is not trusted says of itself, where there are so many users.

    What is missing is left out; so is who is no user, and counted.

    Raises
    ------
    ValueError
        If it says more than there can be to say.
    """
    size, most = content_bytes(content), largest_words(users)
    if size > most:
        raise ValueError(f"{size:,} bytes of introduction: expected <= {most:,}")
    config = find(content, CONFIG, ConfigRecord) or ConfigRecord()
    said = config.get("holds", [])
    told = said if isinstance(said, list) else []
    holds = frozenset(user for user in told if type(user) is int and 0 <= user < users)
    return Introduction(str(config.get("role", "auto")), holds, len(told) - len(holds))
