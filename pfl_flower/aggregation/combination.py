"""Checked rows to one direction, by the rule of the run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pfl_flower.aggregation.reports import Reason, Rejection
from pfl_flower.aggregation.rows import Rows
from pfl_flower.aggregation.rules import bind
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.objective.vectors import finite
from pfl_flower.support.run_settings import RunSettings

Aggregation = Callable[[Tensor], Tensor]
"""From the accepted rows ``(m, d)``, ordered by user, to the direction ``(d,)`` of descent."""


PARAMETERS = {"krum-selected": "selected", "clipping-radius": "radius"}
"""Keys that single rules read, and what these call them."""


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
    read = AGGREGATIONS.row(name).reads
    return bind(
        AGGREGATIONS.load(name),
        tolerance=settings.tolerance(),
        mixing=settings.aggregation_mixing,
        **{PARAMETERS[key]: getattr(settings, key.replace("-", "_")) for key in read},
        **AGGREGATIONS.options(name, settings.aggregation_options),
    )


def combine(
    rows: Rows, rho: Tensor, eta: float, rule: Aggregation = total
) -> tuple[Tensor, Rows, list[Rejection]]:
    """Combine the accepted rows, refusing those that would make rho non-finite.

    Parameters
    ----------
    rows : Rows
        Accepted rows ``(d,)``; they are taken in the order of the user ids.
    rho, eta
        Current global model ``(d,)`` and step size.
    rule : Aggregation
        How rows become one direction.

    Returns
    -------
    tuple
        The direction ``(d,)`` (0 without rows), the rows that counted, and rejections for overflow.
    """
    kept = _finite_rows(rows, rho, eta, rule)
    direction = rule(kept.values_by_user) if kept else torch.zeros_like(rho)
    detail = "rho would no longer be finite"
    lost = rows.users[~torch.isin(rows.users, kept.users)].tolist()
    return direction, kept, [Rejection(user, Reason.OVERFLOW, detail) for user in lost]


def _finite_rows(rows: Rows, rho: Tensor, eta: float, rule: Aggregation) -> Rows:
    """Return the rows, taken in order, with which rho stays finite.

    A group that would not do is halved: a few bad rows among many cost a few sums.
    """
    kept = Rows.none()
    waiting = [rows] if rows else []
    while waiting:
        group = waiting.pop()
        tried = Rows.merge([kept, group])
        if bool(finite(rho - eta * rule(tried.values_by_user))):
            kept = tried
        elif len(group) > 1:
            index = torch.arange(len(group))
            half = len(group) // 2
            waiting += [group.select(index[half:]), group.select(index[:half])]
    return kept
