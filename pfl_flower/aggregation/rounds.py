"""Rules that see who reported in which round, and may remember: ``init`` and ``update``.

A rule of plain rows is a function. One that needs more is a class, made once in a run from what the
server knows (``RuleSetup``) and its options; between rounds the server keeps its state, a
NamedTuple of tensors that keep their shapes, and puts it into checkpoints.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from pfl_flower.aggregation.rows import Rows
from pfl_flower.support.run_settings import RunSettings


class Nothing(NamedTuple):
    """Nothing is remembered."""


@dataclass(frozen=True, kw_only=True)
class Received:
    """What a rule sees of a round.

    Attributes
    ----------
    round : int
        Number t of the round, from 1.
    users : Tensor
        Ids ``(m,)`` of those whose rows counted, ascending, int64, on the CPU.
    rows : Tensor
        Their rows ``(m, d)``; mixed, with ``aggregation-mixing``.
    rho : Tensor
        Global model rho_t, ``(d,)``.
    """

    round: int
    users: Tensor
    rows: Tensor
    rho: Tensor


class RuleSetup(Protocol):
    """What the server knows when a rule is made."""

    @property
    def settings(self) -> RunSettings:
        """The run's configuration."""
        ...

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Return random draws that are a function of the run's seed and of the words."""
        ...

    def root(self, rho: Tensor, theta: Tensor, points: int, round: int) -> tuple[Tensor, Tensor]:
        """Return the report ``(d,)`` of an honest user who holds the server's own points.

        And the model ``(d,)`` that it holds then, which began at ``theta``.
        """
        ...


State = TypeVar("State", bound=NamedTuple)


@runtime_checkable
class RoundRule(Protocol[State]):
    """``init`` and ``update`` over a state that is a NamedTuple of tensors."""

    def init(self, rho: Tensor) -> State:
        """Return the state before the first round, for parameters shaped like ``rho (d,)``."""
        ...

    def update(self, state: State, received: Received) -> tuple[Tensor, State]:
        """Return the direction ``(d,)``, k times a mean of k rows, and the next state."""
        ...


def sees_rounds(factory: object) -> bool:
    """Return whether a rule is made by a class with ``init`` and ``update``."""
    return inspect.isclass(factory) and hasattr(factory, "init") and hasattr(factory, "update")


def is_told_f(factory: Callable[..., object]) -> bool:
    """Return whether a rule, or what makes one, asks for f by a parameter ``tolerance``."""
    return "tolerance" in inspect.signature(factory).parameters


@dataclass(frozen=True)
class OfRound:
    """A rule in one round: rows of some users to a direction.

    Whether rho would overflow is tried with several groups of rows; the state that is kept is that
    of the group which counted in the end.
    """

    rule: RoundRule[Any]
    state: Any
    round: int
    rho: Tensor
    mixed: Callable[[Tensor], Tensor]

    def direction(self, rows: Rows) -> Tensor:
        """Return the direction that these rows make."""
        return self.answer(rows)[0]

    def answer(self, rows: Rows) -> tuple[Tensor, Any]:
        """Return the direction that these rows make, and the state after them."""
        seen = Received(
            round=self.round,
            users=rows.users,
            rows=self.mixed(rows.values_by_user),
            rho=self.rho,
        )
        found: tuple[Tensor, Any] = self.rule.update(self.state, seen)
        return found


def form_fault(right: Mapping[str, Tensor], found: Mapping[str, Any]) -> str:
    """Return in words how a kept state differs from one that the rule starts with; empty if not."""
    if right.keys() != found.keys():
        said = [", ".join(sorted(names)) or "no field" for names in (right, found)]
        return f"a state of {said[0]}, and it is of {said[1]}"
    for name, value in right.items():
        other = found[name]
        if tuple(other.shape) != tuple(value.shape) or other.dtype != value.dtype:
            return (
                f"a state whose {name} is of shape {tuple(value.shape)} in {value.dtype}, and it "
                f"is of {tuple(other.shape)} in {other.dtype}"
            )
        if other.is_floating_point() and not bool(other.isfinite().all()):
            return f"a state of finite numbers, and its {name} is not"
    return ""
