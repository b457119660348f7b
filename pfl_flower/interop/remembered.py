"""What the attacker keeps between messages, in ``context.state``, out of the app's sight."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

ARRAYS = "pfl-attack-arrays"
NUMBERS = "pfl-attack-numbers"
ACCEPTED, TARGET = "accepted", "target"
OF_STATE = "state."
"""How the names of the attack's own fields begin."""


class Memory(NamedTuple):
    """Of the last round in which the node was asked.

    Attributes
    ----------
    messages : int
        Messages answered so far.
    report : Tensor or None
        What was reported, ``(d,)``.
    state : mapping or None
        The attack's, by the names of its fields.
    target : Tensor or None
        theta_dagger, which a function made of the first model that came, ``(d,)``.
    """

    messages: int = 0
    report: Tensor | None = None
    state: dict[str, Tensor] | None = None
    target: Tensor | None = None


def taken(state: RecordDict) -> Memory:
    """Take the attacker's records out of a node's state, so that the app does not see them."""
    arrays, numbers = state.pop(ARRAYS, None), state.pop(NUMBERS, None)
    if not isinstance(arrays, ArrayRecord) or not isinstance(numbers, ConfigRecord):
        return Memory()
    kept = {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
    own = {
        name.removeprefix(OF_STATE): value
        for name, value in kept.items()
        if name.startswith(OF_STATE)
    }
    return Memory(
        messages=_whole(numbers["messages"]),
        report=kept.get(ACCEPTED),
        state=own if ACCEPTED in kept else None,
        target=kept.get(TARGET),
    )


def put(state: RecordDict, memory: Memory) -> None:
    """Put the attacker's records back."""
    if memory.messages == 0:
        return
    kept = {OF_STATE + name: value for name, value in (memory.state or {}).items()}
    if memory.report is not None:
        kept[ACCEPTED] = memory.report
    if memory.target is not None:
        kept[TARGET] = memory.target
    state[ARRAYS] = ArrayRecord({name: Array(value.numpy()) for name, value in kept.items()})
    state[NUMBERS] = ConfigRecord({"messages": memory.messages})


def _whole(value: Any) -> int:
    return int(value)
