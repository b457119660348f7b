"""What the attacker keeps between messages, in ``context.state``, out of the app's sight."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

ARRAYS = "pfl-attack-arrays"
NUMBERS = "pfl-attack-numbers"
ACCEPTED = "accepted"


class Memory(NamedTuple):
    """Of the last round in which the node was asked.

    Attributes
    ----------
    messages : int
        Messages answered so far.
    report : Tensor or None
        What was reported, ``(d,)``.
    state : tuple of Tensor or None
        The attack's, by the names of its fields.
    """

    messages: int
    report: Tensor | None
    state: dict[str, Tensor] | None


def taken(state: RecordDict) -> Memory:
    """Take the attacker's records out of a node's state, so that the app does not see them."""
    arrays, numbers = state.pop(ARRAYS, None), state.pop(NUMBERS, None)
    if not isinstance(arrays, ArrayRecord) or not isinstance(numbers, ConfigRecord):
        return Memory(0, None, None)
    kept = {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
    report = kept.pop(ACCEPTED)
    return Memory(_whole(numbers["messages"]), report, kept)


def put(state: RecordDict, memory: Memory) -> None:
    """Put the attacker's records back."""
    if memory.report is None or memory.state is None:
        return
    kept = {ACCEPTED: memory.report, **memory.state}
    state[ARRAYS] = ArrayRecord({name: Array(value.numpy()) for name, value in kept.items()})
    state[NUMBERS] = ConfigRecord({"messages": memory.messages})


def _whole(value: Any) -> int:
    return int(value)
