"""Attacks of a strategic user as pure functions over an explicit, frozen state.

An attack says what it would like to report; the harness (``plausible_report``, ``StrategicClient``)
projects that on GRAD(rho), remembers what was accepted, and measures success.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from pfl_flower.objective.plausible import Plausible


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a strategic user sees in a round.

    Attributes
    ----------
    round : int
        Number t of the round, from 1.
    rho : Tensor
        Global model rho_t, ``(d,)``.
    eta : float
        Step size eta_t of this round, times the factor by which the server rescales the sum of a
        sample's reports, if it does.
    eta_sum : float
        Sum of the step sizes of all rounds before t.
    accepted : Tensor
        The user's previous report as the server counted it, ``(d,)``: 0 if it was rejected or if
        there was none.
    honest_sum : Tensor or None
        Sum ``(d,)`` of the honest gradients of the previous round, in the ``oracle`` protocol only.
    surrogates : Tensor or None
        Honest reports ``(m, d)`` at rho_t on the datasets that the attack names in ``datasets``, if
        it does: what the attacker works out by itself on data of its own.
    honest : Tensor or None
        The honest reports of this round that count, ``(m, d)``, if the attacker is omniscient.
    coalition : int or None
        How many strategic users are asked in this round, if it is.
    """

    round: int
    rho: Tensor
    eta: float
    eta_sum: float
    accepted: Tensor
    honest_sum: Tensor | None = None
    surrogates: Tensor | None = None
    honest: Tensor | None = None
    coalition: int | None = None


State = TypeVar("State", bound=NamedTuple)


@runtime_checkable
class Attack(Protocol[State]):
    """``init`` and ``update`` over a state that is a NamedTuple of tensors."""

    def init(self, rho: Tensor) -> State:
        """Return the state before the first round, for parameters shaped like ``rho (d,)``."""
        ...

    def update(self, state: State, observation: Observation) -> tuple[Tensor, State]:
        """Return the gradient ``(d,)`` to report, not yet projected, and the next state."""
        ...


def known_rows(datasets: tuple[int, ...], observation: Observation) -> Tensor:
    """Return the honest reports ``(m, d)`` that an attack goes by: its surrogates', or the round's.

    Where it names no datasets it is omniscient, and m may be 0 in a round without an honest report.

    Raises
    ------
    ValueError
        If the harness gave no reports, or not one for each dataset.
    """
    rows = observation.surrogates if datasets else observation.honest
    if rows is None or (datasets and len(rows) != len(datasets)):
        wanted = f"surrogates: expected {len(datasets)} reports"
        raise ValueError(wanted if datasets else "honest: expected the reports of the round")
    return rows


def plausible_report(
    attack: Attack[State], state: State, observation: Observation, plausible: Plausible
) -> tuple[Tensor, State]:
    """Return what the attack reports, projected on GRAD(rho_t) or another set, and its state."""
    gradient, state = attack.update(state, observation)
    return plausible.project(gradient), state
