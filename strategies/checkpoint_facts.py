"""What a checkpoint may say: it may come from anywhere, and is believed no more than a reply is.

The seal shows that a file is whole, not who wrote it. Each fact has a type and a range, each array
a shape, a dtype and a range, and they must agree with the run that is to go on, and with each
other; the first that does not is named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfl_flower.aggregation.reports import Reason
from pfl_flower.run.attendance import HONEST_NODE, VALUE_CHARACTERS
from pfl_flower.run.keys import Scalar, kebab
from pfl_flower.support.files import SealError
from pfl_flower.support.foreign_text import one_line
from strategies.journal import Extent
from strategies.server_state import UNHEARD

REASONS = frozenset({*map(str, Reason), HONEST_NODE})
User = Annotated[int, Field(ge=0, lt=2**63)]
Round = Annotated[int, Field(ge=1, lt=2**63)]
Node = Annotated[int, Field(ge=0, lt=2**64)]
Times = Annotated[int, Field(ge=1, lt=2**63)]
Words = Annotated[str, Field(max_length=VALUE_CHARACTERS)]


class _Facts(BaseModel):
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", alias_generator=kebab, populate_by_name=True
    )


class JournalFacts(_Facts):
    """Which journal goes with a checkpoint, and how far."""

    name: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    rounds: Extent
    rho: Extent


class AttendanceFacts(_Facts):
    """What ``Attendance.facts`` returns."""

    heard: list[User]
    unheard: list[tuple[User, dict[str, Times]]]
    lost: list[tuple[User, Round, Words]]
    unkept: list[tuple[User, Round]]

    def users(self) -> Iterator[int]:
        """Yield whom it is about."""
        yield from self.heard
        yield from (user for user, _ in self.unheard)
        yield from (user for user, _, _ in self.lost)
        yield from (user for user, _ in self.unkept)


class Facts(_Facts):
    """What a checkpoint says in words."""

    round: Round
    config: dict[str, Scalar]
    fingerprint: str
    eta_sum: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    nodes: list[tuple[Node, list[User]]]
    strategic: list[User]
    journal: JournalFacts
    attendance: AttendanceFacts

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Facts:
        """Return what a checkpoint says, each fact of its type and within its range.

        Raises
        ------
        SealError
            With the first that is not.
        """
        try:
            # As JSON: there a list is a tuple, and 1.0, true or "1" is no whole number.
            return cls.model_validate_json(json.dumps(facts))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = one_line(".".join(map(str, first["loc"])) or "facts", 80)
            what = "is absent" if first["type"] == "missing" else f"is wrong ({first['msg']})"
            raise SealError(f"{where} {what}") from None

    def check_users(self, users: int) -> None:
        """Check that every user of the run is on one node, and nobody else anywhere.

        Raises
        ------
        SealError
            If not.
        """
        if len({node for node, _ in self.nodes}) != len(self.nodes):
            raise SealError("nodes is wrong (a node twice)")
        if not all(ids and ids == sorted(ids) for _, ids in self.nodes):
            raise SealError("nodes is wrong (expected the users of each node in ascending order)")
        if sorted(user for _, ids in self.nodes for user in ids) != list(range(users)):
            raise SealError(f"nodes is wrong (expected each of {users} users on one node)")
        for name, ids in (("strategic", self.strategic), ("attendance", self.attendance.users())):
            if strangers := {user for user in ids if user >= users}:
                raise SealError(f"{name} is wrong (user {min(strangers)}: expected < {users})")
        if self.strategic != sorted(set(self.strategic)):
            raise SealError("strategic is wrong (expected each user once, in ascending order)")

    def check_attendance(self) -> None:
        """Check that attendance is of rounds that were, with reasons that there are.

        Raises
        ------
        SealError
            If not.
        """
        said = self.attendance
        latest = max([0, *(at for _, at, _ in said.lost), *(at for _, at in said.unkept)])
        if latest > self.round:
            raise SealError(f"attendance is wrong (round {latest}: expected <= {self.round})")
        if unknown := {why for _, whys in said.unheard for why in whys} - REASONS:
            raise SealError(f"attendance is wrong (no reason is called {one_line(min(unknown))})")


@dataclass(frozen=True)
class Form:
    """What an array must look like: its dtype and shape, and the range of finite numbers."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    least: float = -math.inf
    most: float = math.inf

    def fault(self, array: np.ndarray[Any, Any]) -> str:
        """Return what is wrong with an array, nothing if it is of this form."""
        if array.dtype != self.dtype or array.shape != self.shape:
            found, right = (f"{shape} of {dtype}" for dtype, shape in (_form(array), _form(self)))
            return f"{found}: expected {right}"
        if not np.isfinite(array).all():
            return "a number that is not finite"
        if (array < self.least).any() or (array > self.most).any():
            return f"a number outside {self.least:g} to {self.most:g}"
        return ""


def _form(thing: Form | np.ndarray[Any, Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    return thing.dtype, thing.shape


def forms(
    facts: Facts,
    *,
    users: int,
    dim: int,
    dtype: str,
    reported: int,
    adam: bool,
    oracle: bool,
    memory: Mapping[str, np.ndarray[Any, Any]],
) -> dict[str, Form]:
    """Return the arrays of a checkpoint, by name.

    Parameters
    ----------
    facts : Facts
        What it says in words.
    users, dim : int
        N and d.
    dtype : str
        Of the run.
    reported : int
        How many strategic users' reports it holds.
    adam, oracle : bool
        Whether the server has moments, and tells strategic users the honest sum.
    memory : mapping
        What the aggregation remembers before the first round, by the names of its arrays.
    """
    real, whole, last = np.dtype(dtype), np.dtype("int64"), facts.round
    found = {
        "rho": Form(real, (dim,)),
        "last-accepted": Form(whole, (users,), 0, last),
        "answered": Form(whole, (users,), UNHEARD, last),
        "strategic-users": Form(whole, (reported,), 0, users - 1),
        "strategic-rows": Form(real, (reported, dim)),
        "strategic-rounds": Form(whole, (reported,), 1, last),
    }
    if oracle:
        found["honest-sum"] = Form(real, (dim,))
    if adam:
        found["optimizer/exp_avg"] = Form(real, (dim,))
        found["optimizer/exp_avg_sq"] = Form(real, (dim,), least=0)
        # torch counts in single precision, whatever the parameter's: up to 2**24, and no further.
        steps = min(last, 2**24)
        found["optimizer/step"] = Form(np.dtype("float32"), (), steps, steps)
    kept = {name: Form(value.dtype, value.shape) for name, value in memory.items()}
    return found | kept


def check_arrays(arrays: Mapping[str, np.ndarray[Any, Any]], right: Mapping[str, Form]) -> None:
    """Check that the arrays are these and no others, each of its form.

    Raises
    ------
    SealError
        With the first that is not.
    """
    if absent := sorted(right.keys() - arrays.keys()):
        raise SealError(f"{absent[0]} is absent")
    if more := sorted(arrays.keys() - right.keys()):
        raise SealError(f"{one_line(more[0], 80)} is nothing that this run keeps")
    for name, form in right.items():
        if fault := form.fault(arrays[name]):
            raise SealError(f"{name} is wrong ({fault})")
