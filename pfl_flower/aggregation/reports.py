"""What the parameter server does with reports: check them, sum them, step rho.

Faults of form reject a reply whole; a row that is not finite or lies outside GRAD(rho_t) is
rejected alone, and a row within the tolerance is projected on GRAD(rho_t) before it counts. Under a
regulariser whose GRAD is a ball of radius lam, with SGD and the sum, k users therefore move
rho_{t+1} by at most ``eta k lam`` whatever they send.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from pfl_flower.aggregation.rows import Rows
from pfl_flower.objective.plausible import EDGE, Plausible
from pfl_flower.objective.vectors import finite


class Reason(StrEnum):
    """Why a report was rejected."""

    NO_REPLY = "no-reply"
    CLIENT_ERROR = "client-error"
    FORGED = "forged"
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


IMPLAUSIBLE = frozenset({Reason.OUTSIDE_GRAD, Reason.NORM_LIMIT, Reason.OVERFLOW})
"""Of reports that came and had the right form, but were judged not to count."""


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
    right = users if isinstance(users, tuple) else tuple(users)
    if report.users != right:
        raise ReportError(Reason.WRONG_USERS, f"users {report.users}: expected {right}")
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
    """Membership in GRAD(rho_t), or in what else reports may be.

    Parameters
    ----------
    plausible : Plausible
        A regulariser, whose GRAD is meant, or a ball.
    rtol : float
        Tolerance on the norm, relative to the radius of GRAD; covers the rounding of honest users.
    max_norm : float
        Extra limit on the norm of a row, 0 for none; the paper has none.
    outside : Reason
        Why what is not plausible is rejected: the ball may itself be a limit.
    """

    plausible: Plausible
    rtol: float = EDGE
    max_norm: float = 0.0
    outside: Reason = Reason.OUTSIDE_GRAD

    def fault(self, user: int, row: Tensor) -> Rejection:
        """Return why a user's row ``(d,)``, which does not count, does not."""
        if not bool(finite(row)):
            return Rejection(user, Reason.NOT_FINITE, "the gradient is not finite")
        norm = float(torch.linalg.vector_norm(row))
        if 0 < self.max_norm < norm and bool(self.plausible.contains(row, self.rtol)):
            return Rejection(user, Reason.NORM_LIMIT, f"norm {norm:.6g}: limit {self.max_norm:.6g}")
        radius = self.plausible.radius
        return Rejection(user, self.outside, f"norm {norm:.6g}: expected <= {radius:.6g}")

    def split(self, rows: Rows) -> tuple[Rows, list[Rejection]]:
        """Return the rows that count, projected on GRAD(rho_t), by user, and the rejections."""
        good = self.plausible.contains(rows.values_by_user, self.rtol)
        if self.max_norm > 0:
            good &= torch.linalg.vector_norm(rows.values_by_user, dim=1) <= self.max_norm
        counts = good.cpu()
        rejections: list[Rejection] = []
        if not bool(counts.all()):
            rejections = [self.fault(user, row) for user, row in rows.select(~counts).items()]
            rows = rows.select(counts)
        projected = self.plausible.project(rows.values_by_user)
        return Rows.ordered(rows.users, projected), rejections
