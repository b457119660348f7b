"""Checked rows to one direction, by the rule of the run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pfl_flower.aggregation.reports import Reason, Rejection
from pfl_flower.aggregation.rows import Rows
from pfl_flower.aggregation.rules import bind
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.aggregation.units import in_units
from pfl_flower.objective.vectors import finite
from pfl_flower.support.run_settings import RunSettings

Aggregation = Callable[[Tensor], Tensor]
"""From the accepted rows ``(m, d)``, ordered by user, to the direction ``(d,)`` of descent."""


PARAMETERS = {"krum-selected": "selected", "clipping-radius": "radius"}
"""Keys that single rules read, and what these call them."""


@in_units()
def total(rows: Tensor) -> Tensor:
    """Return the sum over users, the paper's rule."""
    return rows.sum(dim=0)


def configured_rule(settings: RunSettings) -> Aggregation:
    """Return what makes one direction of the rows of a run, its parameters given.

    Raises
    ------
    ConfigError
        If a rule of one's own cannot be imported, or its options are wrong.
    """
    name = settings.aggregation
    found = {key: getattr(settings, key.replace("-", "_")) for key in AGGREGATIONS.row(name).reads}
    return bind(
        AGGREGATIONS.load(name),
        tolerance=settings.tolerance(),
        mixing=settings.aggregation_mixing,
        # What is empty is the rule's own.
        **{PARAMETERS[key]: value for key, value in found.items() if value != ""},
        **AGGREGATIONS.options(name, settings.aggregation_options),
    )


def combine(
    rows: Rows,
    rho: Tensor,
    eta: float,
    rule: Aggregation = total,
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
    rule : Aggregation
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

    kept, direction = rows, torch.zeros_like(rho)
    if rows:
        takes = stays_finite if takes is None else takes
        direction = rule(rows.values_by_user)
        if not takes(direction):
            kept = _taken(rows, lambda some: takes(rule(some.values_by_user)))
            direction = rule(kept.values_by_user) if kept else torch.zeros_like(rho)
    detail = "rho, or its optimiser's moments, would no longer be finite"
    lost = rows.users[~torch.isin(rows.users, kept.users)].tolist()
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
