"""What the parameter server does with reports: check them, sum them, step rho.

Faults of form reject a reply whole; a row that is not finite or lies outside GRAD(rho_t) is
rejected alone, and a row within the tolerance is projected on GRAD(rho_t) before it counts. Under a
regulariser whose GRAD is a ball of radius lam, with SGD and the sum, k users therefore move
rho_{t+1} by at most ``eta k lam`` whatever they send.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from pfl_flower.regularizers import Regularizer
from pfl_flower.robust import ROBUST


class Reason(StrEnum):
    """Why a report was rejected."""

    NO_REPLY = "no-reply"
    CLIENT_ERROR = "client-error"
    MISSING_ARRAYS = "missing-arrays"
    MALFORMED = "malformed"
    TOO_LARGE = "too-large"
    WRONG_ROUND = "wrong-round"
    WRONG_USERS = "wrong-users"
    WRONG_ROWS = "wrong-rows"
    WRONG_SHAPE = "wrong-shape"
    WRONG_DTYPE = "wrong-dtype"
    NOT_FINITE = "not-finite"
    OUTSIDE_GRAD = "outside-grad"
    NORM_LIMIT = "norm-limit"
    OVERFLOW = "overflow"


@dataclass(frozen=True)
class Rejection:
    """One user's report that did not count."""

    user: int
    reason: Reason
    detail: str


class ReportError(ValueError):
    """A fault of form or identity, for which a reply is rejected whole."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Report:
    """A node's answer: one gradient row per user it acts for, ``(k, d)``, ordered as ``users``."""

    round: int
    users: tuple[int, ...]
    gradients: Tensor


def check_form(
    report: Report, *, round: int, users: Sequence[int], dim: int, dtype: torch.dtype
) -> None:
    """Check that a report answers the message it replies to.

    Raises
    ------
    ReportError
        With the first fault found: the round, the users, the dtype, the shape or the number of
        rows.
    """
    if report.round != round:
        raise ReportError(Reason.WRONG_ROUND, f"round {report.round}: expected {round}")
    if report.users != tuple(users):
        raise ReportError(Reason.WRONG_USERS, f"users {report.users}: expected {tuple(users)}")
    if report.gradients.dtype != dtype:
        raise ReportError(Reason.WRONG_DTYPE, f"dtype {report.gradients.dtype}: expected {dtype}")
    if report.gradients.ndim != 2 or report.gradients.shape[1] != dim:
        shape = tuple(report.gradients.shape)
        raise ReportError(Reason.WRONG_SHAPE, f"shape {shape}: expected ({len(users)}, {dim})")
    if report.gradients.shape[0] != len(users):
        rows = report.gradients.shape[0]
        raise ReportError(Reason.WRONG_ROWS, f"{rows} rows: expected {len(users)}")


@dataclass(frozen=True, kw_only=True)
class RowCheck:
    """Membership in GRAD(rho_t).

    Parameters
    ----------
    regularizer : Regularizer
        Whose GRAD it is.
    rtol : float
        Tolerance on the norm, relative to the radius of GRAD; covers the rounding of honest users.
    max_norm : float
        Extra limit on the norm of a row, 0 for none; the paper has none.
    """

    regularizer: Regularizer
    rtol: float = 1e-6
    max_norm: float = 0.0

    def fault(self, user: int, row: Tensor) -> Rejection | None:
        """Return why a user's row ``(d,)`` does not count, or None if it does."""
        if not bool(torch.isfinite(row).all()):
            return Rejection(user, Reason.NOT_FINITE, "the gradient is not finite")
        norm = float(torch.linalg.vector_norm(row))
        if not bool(self.regularizer.contains(row, self.rtol)):
            radius = self.regularizer.radius
            return Rejection(
                user, Reason.OUTSIDE_GRAD, f"norm {norm:.6g}: expected <= {radius:.6g}"
            )
        if 0 < self.max_norm < norm:
            return Rejection(user, Reason.NORM_LIMIT, f"norm {norm:.6g}: limit {self.max_norm:.6g}")
        return None

    def split(self, report: Report) -> tuple[dict[int, Tensor], list[Rejection]]:
        """Return the rows that count, projected on GRAD(rho_t), by user, and the rejections."""
        accepted: dict[int, Tensor] = {}
        rejections = []
        for user, row in zip(report.users, report.gradients, strict=True):
            rejection = self.fault(user, row)
            if rejection is None:
                accepted[user] = self.regularizer.project(row)
            else:
                rejections.append(rejection)
        return accepted, rejections


Aggregation = Callable[[Tensor], Tensor]
"""From the accepted rows ``(m, d)``, ordered by user, to the direction ``(d,)`` of descent."""


def total(rows: Tensor) -> Tensor:
    """Return the sum over users, the paper's rule."""
    return rows.sum(dim=0)


AGGREGATIONS: dict[str, Aggregation] = {"sum": total, **ROBUST}


def combine(
    rows: dict[int, Tensor], rho: Tensor, eta: float, rule: Aggregation = total
) -> tuple[Tensor, dict[int, Tensor], list[Rejection]]:
    """Combine the accepted rows, refusing those that would make rho non-finite.

    Parameters
    ----------
    rows : dict
        Accepted rows ``(d,)`` by user; they are taken in the order of the user ids.
    rho, eta
        Current global model ``(d,)`` and step size.
    rule : Aggregation
        How rows become one direction.

    Returns
    -------
    tuple
        The direction ``(d,)`` (0 without rows), the rows that counted, and rejections for overflow.
    """
    kept: dict[int, Tensor] = {}
    rejections = []
    ordered = dict(sorted(rows.items()))
    direction = _direction(ordered, rho, rule)
    if _finite_step(rho, eta, direction):
        kept = ordered
    else:
        for user, row in ordered.items():
            if _finite_step(rho, eta, _direction({**kept, user: row}, rho, rule)):
                kept[user] = row
            else:
                detail = "rho would no longer be finite"
                rejections.append(Rejection(user, Reason.OVERFLOW, detail))
        direction = _direction(kept, rho, rule)
    return direction, kept, rejections


def _direction(rows: dict[int, Tensor], rho: Tensor, rule: Aggregation) -> Tensor:
    return rule(torch.stack(list(rows.values()))) if rows else torch.zeros_like(rho)


def _finite_step(rho: Tensor, eta: float, direction: Tensor) -> bool:
    return bool(torch.isfinite(rho - eta * direction).all())
