"""What the parameter server records of a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import WARNING

import torch
from flwr.common.logger import log
from torch import Tensor

from pfl_flower.aggregation import Rejection
from pfl_flower.messages import NodeMetrics
from pfl_flower.rows import Rows

LOGGED_REJECTIONS = 3


@dataclass
class RoundRecord:
    """What happened in a round.

    Attributes
    ----------
    round : int
        t, from 1.
    eta : float
        eta_t.
    rho : Tensor
        rho_{t+1}, ``(d,)``.
    accepted : Rows
        Rows that counted, ``(d,)``, by user.
    rejections : list
        Reports that did not, with reasons.
    strategic : frozenset
        Users who act strategically.
    metrics : NodeMetrics
        Worst residual and number of local solves that missed their tolerance.
    accuracies : dict
        Of the local models, by user, in the rounds that evaluate them.
    seconds : float
        Wall time of the round.
    """

    round: int
    eta: float
    rho: Tensor
    accepted: Rows
    rejections: list[Rejection]
    strategic: frozenset[int]
    metrics: NodeMetrics
    accuracies: Mapping[int, float] = field(default_factory=dict)
    seconds: float = 0.0

    def gradient_sum(self, *, strategic: bool) -> Tensor:
        """Return the sum ``(d,)`` of the accepted rows of strategic, or of honest, users."""
        members = torch.isin(self.accepted.users, torch.tensor(sorted(self.strategic)))
        rows = self.accepted.select(members if strategic else ~members).values_by_user
        return rows.sum(dim=0) if len(rows) else torch.zeros_like(self.rho)

    def log_faults(self) -> None:
        """Log the first rejections, and the local solves that missed their tolerance."""
        for rejection in self.rejections[:LOGGED_REJECTIONS]:
            log(
                WARNING,
                "round %d: user %d rejected, %s (%s)",
                self.round,
                rejection.user,
                rejection.reason,
                rejection.detail,
            )
        if self.metrics.unconverged:
            log(
                WARNING,
                "round %d: %d local solves missed their tolerance, worst residual %.2e",
                self.round,
                self.metrics.unconverged,
                self.metrics.worst_residual,
            )
