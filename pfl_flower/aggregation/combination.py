"""Checked rows to one direction, by the rule of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pfl_flower.aggregation.reports import Reason, Rejection
from pfl_flower.aggregation.rounds import OfRound, RoundRule, RuleSetup, is_told_f, sees_rounds
from pfl_flower.aggregation.rows import Rows
from pfl_flower.aggregation.rules import bind, mixed
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.aggregation.units import in_units
from pfl_flower.objective.vectors import finite
from pfl_flower.support.run_settings import RunSettings
from pfl_flower.support.users import among

Aggregation = Callable[[Tensor], Tensor]
"""From the accepted rows ``(m, d)``, ordered by user, to the direction ``(d,)`` of descent."""


PARAMETERS = {"krum-selected": "selected", "clipping-radius": "radius"}
"""Keys that single rules read, and what these call them."""


def total(rows: Tensor) -> Tensor:
    """Return the sum over users, the paper's rule."""
    if rows.is_cpu or rows.dtype != torch.float32:
        return _added(rows)
    # On a card a sum in double needs no look at how large the rows are, and no unit.
    return rows.sum(dim=0, dtype=torch.float64).to(rows.dtype)


@in_units()
def _added(rows: Tensor) -> Tensor:
    return rows.sum(dim=0)


def configured_rule(settings: RunSettings) -> Aggregation:
    """Return what makes one direction of the rows of a run, its parameters given.

    Raises
    ------
    ConfigError
        If a rule of one's own cannot be imported, or its options are wrong.
    """
    name = settings.aggregation
    keyed = {key: value for key, value in _keyed(settings).items() if key != "tolerance"}
    return bind(
        AGGREGATIONS.load(name),
        tolerance=settings.tolerance(),
        mixing=settings.aggregation_mixing,
        **keyed,
        **AGGREGATIONS.options(name, settings.aggregation_options),
    )


class RunningRule:
    """The rule of a run, which may see users and rounds and remember.

    Parameters
    ----------
    settings : RunSettings
        The run's configuration.
    setup : RuleSetup
        What the server knows, for rules that are made of it.
    rho : Tensor
        Of the first round, ``(d,)``.

    Raises
    ------
    ConfigError
        As ``configured_rule``.
    """

    def __init__(self, settings: RunSettings, setup: RuleSetup, rho: Tensor) -> None:
        name = settings.aggregation
        self.plain: Aggregation | None = None
        self.rule: RoundRule[Any] | None = None
        self.state: Any = None
        if not sees_rounds(AGGREGATIONS.load(name)):
            self.plain = configured_rule(settings)
            return
        keyed = _keyed(settings)
        self.rule = AGGREGATIONS.make(name, settings.aggregation_options, setup, **keyed)
        self.state = self.rule.init(rho)
        f = settings.tolerance()
        self._mixed = partial(mixed, tolerance=f) if settings.aggregation_mixing else _as_they_are

    def at(self, round: int, rho: Tensor) -> Aggregation | OfRound:
        """Return the rule in a round."""
        if self.rule is None:
            assert self.plain is not None
            return self.plain
        return OfRound(self.rule, self.state, round, rho, self._mixed)

    def remember(self, rule: Aggregation | OfRound, rows: Rows) -> None:
        """Keep the state after the rows that counted; without any it stays as it is."""
        if isinstance(rule, OfRound) and rows:
            self.state = rule.answer(rows)[1]

    def memory(self) -> dict[str, Tensor]:
        """Return what is remembered by name; nothing of a rule of plain rows."""
        return {} if self.rule is None else dict(self.state._asdict())

    def restore(self, memory: Mapping[str, Tensor]) -> None:
        """Go on with what ``memory`` returned."""
        if self.rule is not None:
            self.state = self.state._replace(**memory)


def _as_they_are(rows: Tensor) -> Tensor:
    return rows


def _keyed(settings: RunSettings) -> dict[str, Any]:
    """Return what keys say of a rule's parameters; what is empty is the rule's own."""
    name = settings.aggregation
    found = {key: getattr(settings, key.replace("-", "_")) for key in AGGREGATIONS.row(name).reads}
    given = {PARAMETERS[key]: value for key, value in found.items() if value != ""}
    if is_told_f(AGGREGATIONS.load(name)):
        given["tolerance"] = settings.tolerance()
    return given


def combine(
    rows: Rows,
    rho: Tensor,
    eta: float,
    rule: Aggregation | OfRound = total,
    *,
    takes: Callable[[Tensor], bool] | None = None,
) -> tuple[Tensor, Rows, list[Rejection]]:
    """Combine the accepted rows, refusing those that would make rho non-finite.

    Rows with small entries are taken before those with large ones; only of two whose largest
    entries are equal, and too large together, is the one of the higher id refused.

    Parameters
    ----------
    rows : Rows
        Accepted rows ``(d,)``; they are combined in the order of the user ids.
    rho, eta
        Current global model ``(d,)`` and step size.
    rule : Aggregation or OfRound
        How rows become one direction.
    takes : callable, optional
        Whether a step along a direction is possible: ``rho - eta direction`` is finite when absent.

    Returns
    -------
    tuple
        The direction ``(d,)`` (0 without rows), the rows that counted, and rejections for overflow.
    """

    def stays_finite(direction: Tensor) -> bool:
        return bool(finite(rho - eta * direction))

    def apply(some: Rows) -> Tensor:
        return rule.direction(some) if isinstance(rule, OfRound) else rule(some.values_by_user)

    takes, kept = stays_finite if takes is None else takes, rows
    direction = apply(rows) if rows else torch.zeros_like(rho)
    if rows and not takes(direction):
        kept = _taken(rows, lambda some: takes(apply(some)))
        direction = apply(kept) if kept else torch.zeros_like(rho)
    detail = "rho, or its optimiser's moments, would no longer be finite"
    lost = () if kept is rows else rows.users[~among(rows.users, kept.users)].tolist()
    return direction, kept, [Rejection(user, Reason.OVERFLOW, detail) for user in lost]


def _taken(rows: Rows, good: Callable[[Rows], bool]) -> Rows:
    """Return the rows, taken by their largest entry, smallest first, that are good together.

    A group that would not do is halved: a few bad rows among many cost a few sums.
    """
    order = rows.values_by_user.abs().amax(dim=1).argsort(stable=True).cpu()
    kept = Rows.none()
    waiting = [order]
    while waiting:
        group = waiting.pop()
        tried = Rows.merge([kept, rows.select(group)])
        if good(tried):
            kept = tried
        elif len(group) > 1:
            half = len(group) // 2
            waiting += [group[half:], group[:half]]
    return kept
