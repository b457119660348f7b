"""Reading a round's replies: every asked user ends with a row that may count, or a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from flwr.app import Message

from pfl_flower.aggregation.reports import (
    Reason,
    Rejection,
    Report,
    ReportError,
    RowCheck,
    check_form,
)
from pfl_flower.aggregation.rows import Rows
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.users import ids
from pfl_flower.transport.node_metrics import NodeMetrics, speaks_of_accuracies
from pfl_flower.transport.nonces import failure_in, genuine
from pfl_flower.transport.pulling import TOO_LARGE
from pfl_flower.transport.training_replies import largest_reply, unpack_report
from strategies.questions import Question

DETAIL_CHARACTERS = 200


@dataclass(frozen=True)
class Form:
    """What every report of a round must look like: its round tag, row length and dtype."""

    round: int
    dim: int
    dtype: torch.dtype


@dataclass
class RoundReplies:
    """What came of a round's replies.

    Attributes
    ----------
    rows : Rows
        Rows that may count, by user.
    rejections : list
        Of the users who have none.
    said : list
        What the nodes say of their own work.
    unkept : list
        Users whose memory their node, as it says, could not keep.
    measured : set
        Nodes that have said with their report how good their local models are, or tried to.
    notices : Counter
        What was left out without costing anybody a row: ``duplicate`` and ``stray`` replies, and
        entries of metrics that are ``absurd``.
    """

    rows: Rows = field(default_factory=Rows.none)
    rejections: list[Rejection] = field(default_factory=list)
    said: list[NodeMetrics] = field(default_factory=list)
    unkept: list[int] = field(default_factory=list)
    measured: set[int] = field(default_factory=set)
    notices: Counter[str] = field(default_factory=Counter)

    @property
    def metrics(self) -> NodeMetrics:
        """The nodes' metrics together: the worst residual, the number of missed tolerances."""
        return NodeMetrics.merge(self.said)


def read_replies(
    asked: Sequence[Question],
    replies: Iterable[Message],
    *,
    form: Form,
    check: RowCheck,
) -> RoundReplies:
    """Check the replies to the messages of a round.

    Parameters
    ----------
    asked
        What was sent.
    replies
        What came back, in any order. A reply belongs to the message it answers, whatever it says of
        its sender, if it brings back that message's secret; only the first reply to a message
        counts, and replies to no message of this round are ignored.
    form
        What a report must look like.
    check
        Membership in GRAD(rho_t).
    """
    answers: dict[str, Message] = {}
    found, known = RoundReplies(), {one.message.metadata.message_id for one in asked}
    for reply in replies:
        identifier = reply.metadata.reply_to_message_id
        if identifier not in known:
            found.notices["stray"] += 1
        elif identifier in answers:
            found.notices["duplicate"] += 1
        else:
            answers[identifier] = reply
    parts = []
    for question in asked:
        users = question.users
        answer = answers.get(question.message.metadata.message_id)
        try:
            report = _read(question, answer, form)
        except ReportError as error:
            detail = one_line(error.detail, DETAIL_CHARACTERS)
            found.rejections += [Rejection(user, error.reason, detail) for user in users]
            continue
        parts.append(Rows(ids(report.users), report.gradients))
        if answer is not None:
            said = NodeMetrics.unpack(answer.content, users, measured=question.measured)
            found.said.append(said)
            if speaks_of_accuracies(answer.content):
                found.measured.add(question.node)
            found.unkept += users if said.unkept else ()
    if parts:
        found.rows, bad = check.split(Rows.merge(parts))
        found.rejections += bad
    if absurd := found.metrics.absurd:
        found.notices["absurd"] = absurd
    return found


def _read(question: Question, answer: Message | None, form: Form) -> Report:
    if answer is None:
        raise ReportError(Reason.NO_REPLY, "its node is gone, or slower than reply-timeout")
    if answer.has_error():
        if answer.error.code == TOO_LARGE:
            raise ReportError(Reason.TOO_LARGE, str(answer.error.reason))
        detail = f"code {answer.error.code}: {answer.error.reason}"
        raise ReportError(Reason.CLIENT_ERROR, detail)
    if not genuine(question.message, answer):
        raise ReportError(Reason.FORGED, "it does not bring back the secret of its question")
    if (why := failure_in(answer.content)) is not None:
        raise ReportError(Reason.CLIENT_ERROR, why)
    users = question.users
    row_bytes, measured = form.dim * form.dtype.itemsize, len(question.measured)
    limit = largest_reply(len(users), row_bytes, measured)
    report = unpack_report(answer.content, max_bytes=limit)
    check_form(report, round=form.round, users=users, dim=form.dim, dtype=form.dtype)
    return report
