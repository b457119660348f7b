"""What the parameter server records of a round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from logging import WARNING

import torch
from flwr.app import MetricRecord
from torch import Tensor

from pfl_flower.aggregation.reports import IMPLAUSIBLE, Rejection
from pfl_flower.aggregation.rows import Rows
from pfl_flower.run.attendance import ranges
from pfl_flower.run.served import Served
from pfl_flower.run.triggered import Triggered
from pfl_flower.support.users import among, ascending
from pfl_flower.transport.flower_internals import log
from pfl_flower.transport.node_metrics import NodeMetrics
from pfl_flower.transport.wire import filled

LOGGED_REJECTIONS = 3


def counts(events: Mapping[str, int]) -> str:
    """Return events and how often they were.

    >>> counts({"no-reply": 2, "malformed": 1})
    'malformed:1;no-reply:2'
    """
    return ";".join(f"{kind}:{number}" for kind, number in sorted(events.items()))


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
    notices : dict
        How often something was left out that cost nobody a row, and what the aggregation had to
        lower because too few rows counted, by kind.
    accuracies : dict
        Of the local models, by user, in the rounds that evaluate them.
    served : dict
        What models come to on users' own test sets, by user, in these rounds.
    triggered : dict
        What the trigger of the run's attack does to users' models, by user, in these rounds.
    honest_unheard : int
        Honest users who were asked, in this round or before, and never sent a well-formed report.
    lost : dict
        Of users whose memory, as their node says, is not that of their last report: the round that
        it is of, 0 for none, and the round that was due.
    unkept : sequence of int
        Users whose memory their node, as it says, could not keep.
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
    notices: Mapping[str, int] = field(default_factory=dict)
    accuracies: Mapping[int, float] = field(default_factory=dict)
    served: Mapping[int, Served] = field(default_factory=dict)
    triggered: Mapping[int, Triggered] = field(default_factory=dict)
    honest_unheard: int = 0
    lost: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    unkept: Sequence[int] = ()
    seconds: float = 0.0

    @cached_property
    def honest_sum(self) -> Tensor:
        """Sum ``(d,)`` of the accepted rows of honest users."""
        return self._sum(self.accepted.select(~self._acts_strategically))

    @cached_property
    def strategic_rows(self) -> Rows:
        """The accepted rows of strategic users."""
        return self.accepted.select(self._acts_strategically)

    @cached_property
    def strategic_sum(self) -> Tensor:
        """Sum ``(d,)`` of the accepted rows of strategic users."""
        return self._sum(self.strategic_rows)

    @cached_property
    def _acts_strategically(self) -> Tensor:
        return among(self.accepted.users, ascending(self.strategic))

    def _sum(self, rows: Rows) -> Tensor:
        if len(rows) == 1:
            return rows.values_by_user[0]
        return rows.values_by_user.sum(dim=0) if rows else torch.zeros_like(self.rho)

    @cached_property
    def missing(self) -> dict[int, str]:
        """The users who were asked and from whom no well-formed report came, and why."""
        return {r.user: str(r.reason) for r in self.rejections if r.reason not in IMPLAUSIBLE}

    @cached_property
    def implausible(self) -> tuple[int, ...]:
        """The users whose well-formed reports were judged not to count."""
        return tuple(r.user for r in self.rejections if r.reason in IMPLAUSIBLE)

    @cached_property
    def honest_missing(self) -> int:
        """How many of them are honest."""
        return len(self.missing.keys() - self.strategic)

    @cached_property
    def honest_reports(self) -> int:
        """How many well-formed reports of honest users came, plausible or not."""
        accepted = int((~self._acts_strategically).sum())
        return accepted + len(set(self.implausible) - self.strategic)

    def reasons(self) -> Counter[str]:
        """Return how many reports were rejected, by reason."""
        return Counter(str(rejection.reason) for rejection in self.rejections)

    def leave_out(self, kind: str, number: int) -> None:
        """Count what was left out after the reports were read."""
        if number:
            self.notices = {**self.notices, kind: self.notices.get(kind, 0) + number}

    def as_metrics(self) -> MetricRecord:
        """Return what Flower's ``Result`` keeps of a round."""
        return filled(
            MetricRecord,
            {
                "accepted": len(self.accepted),
                "rejections": len(self.rejections),
                "worst-residual": self.metrics.worst_residual,
                **{f"rejected-{reason}": number for reason, number in self.reasons().items()},
                **{f"left-out-{kind}": number for kind, number in self.notices.items()},
            },
        )

    def log_faults(self) -> None:
        """Log the first rejections, how many there were, and what else went wrong."""
        for rejection in self.rejections[:LOGGED_REJECTIONS]:
            log(
                WARNING,
                "round %d: user %d rejected, %s (%s)",
                self.round,
                rejection.user,
                rejection.reason,
                rejection.detail,
            )
        if len(self.rejections) > LOGGED_REJECTIONS:
            log(WARNING, "round %d: rejected in all, %s", self.round, counts(self.reasons()))
        if self.notices:
            log(WARNING, "round %d: left out, %s", self.round, counts(self.notices))
        if self.lost:
            log(
                WARNING, "round %d: memory lost, of users %s", self.round, ranges(sorted(self.lost))
            )
        if self.metrics.unconverged:
            log(
                WARNING,
                "round %d: %d local solves missed their tolerance, worst residual %.2e",
                self.round,
                self.metrics.unconverged,
                self.metrics.worst_residual,
            )
