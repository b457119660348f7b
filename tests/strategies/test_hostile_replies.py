"""Replies made by changing one thing of a valid one, and what any number of strategic users can do.

Hypothesis draws what is changed and how. Nothing may stop the server, and nothing outside GRAD(rho)
may count.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
)
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from pfl_flower.aggregation.combination import combine
from pfl_flower.aggregation.reports import Reason, Report, RowCheck
from pfl_flower.objective.regularizers import L2, Regularizer, SmoothL2, SquaredL2
from pfl_flower.objective.table import REGULARIZERS
from pfl_flower.run.problem import build_problem
from pfl_flower.transport.broadcasts import pack_rho
from pfl_flower.transport.inprocess import InProcessGrid
from pfl_flower.transport.node_metrics import METRICS, NodeMetrics
from pfl_flower.transport.nonces import FAILURE, NONCE, nonce_of, signed
from pfl_flower.transport.questions import pack_question
from pfl_flower.transport.records import ARRAYS, CONFIG
from pfl_flower.transport.training_replies import GRADIENTS, pack_report
from strategies.parameter_server import ParameterServer
from strategies.questions import Question
from strategies.replies import Form, read_replies
from strategies.roster import Roster
from tests.support.runs import configure

DIM, USERS, ROUND, ETA = 4, (1, 3), 7, 10.0
FORM = Form(ROUND, DIM, torch.float64)
CHECKS = {
    "l2": RowCheck(plausible=L2(lam=2.0)),
    "smooth-l2": RowCheck(plausible=SmoothL2(lam=2.0)),
    "limited": RowCheck(plausible=L2(lam=2.0), max_norm=1.0),
    "squared-l2": RowCheck(plausible=SquaredL2(lam=2.0)),
}
TURNS = (*CHECKS, *CHECKS, "limited", "limited", "squared-l2", "squared-l2")
"""Limits and overflow are rarer than other reasons."""
HONEST = np.array([[0.3, -0.2, 0.1, 0.0], [0.0, 0.5, 0.5, -0.1]])
Draw = Callable[[st.SearchStrategy[Any]], Any]


def valid(question: Message) -> Message:
    report = Report(ROUND, USERS, torch.from_numpy(HONEST.copy()))
    content = pack_report(report, NodeMetrics(1e-12, 0))
    return Message(signed(content, nonce_of(question.content)), reply_to=question)


def set_array(reply: Message, array: Array) -> Message:
    reply.content[ARRAYS] = ArrayRecord({GRADIENTS: array})
    return reply


SPECIAL = (math.nan, math.inf, -math.inf, 5e-324, -5e-324, 1e-310, 0.0, -0.0, 1e308, -1e308, 1e155)


def entry(draw: Draw, reply: Message) -> Message:
    """Change a number: to anything, or to something special."""
    values = HONEST.copy()
    number = st.sampled_from(SPECIAL) | st.floats(-3, 3) | st.floats()
    values[draw(st.integers(0, 1)), draw(st.integers(0, DIM - 1))] = draw(number)
    return set_array(reply, Array(values))


def denormals(draw: Draw, reply: Message) -> Message:
    """Make all numbers denormal, or 0."""
    numbers = st.floats(-2e-308, 2e-308, allow_subnormal=True)
    rows = draw(st.lists(numbers, min_size=2 * DIM, max_size=2 * DIM))
    return set_array(reply, Array(np.array(rows).reshape(2, DIM)))


def scale(draw: Draw, reply: Message) -> Message:
    return set_array(reply, Array(HONEST * draw(st.sampled_from((0.5, 1.6, 1.8, 2.5, 9.0)))))


def enormous(draw: Draw, reply: Message) -> Message:
    return set_array(reply, Array(HONEST * draw(st.sampled_from((1e308, 5e307, -1e308)))))


def shape(draw: Draw, reply: Message) -> Message:
    sides = draw(st.lists(st.sampled_from((0, 1, 2, 3, DIM, DIM + 1)), max_size=3))
    return set_array(reply, Array(np.zeros(sides)))


def rows(draw: Draw, reply: Message) -> Message:
    return set_array(reply, Array(np.zeros((draw(st.integers(0, 5)), DIM))))


def dtype(draw: Draw, reply: Message) -> Message:
    kinds = "float16 float32 float64 int64 int8 bool complex128 >f8 U4 S3 M8[s] f8,i4"
    return set_array(reply, Array(np.zeros((2, DIM), dtype=draw(st.sampled_from(kinds.split())))))


def data(draw: Draw, reply: Message) -> Message:
    """Flip, cut, add or replace bytes of the serialised array."""
    old = reply.content.array_records[ARRAYS][GRADIENTS].data
    at = draw(st.integers(0, len(old) - 1))
    new = draw(
        st.sampled_from(
            (
                old[:at],
                old[:at] + bytes([old[at] ^ (1 << at % 8)]) + old[at + 1 :],
                old + bytes(at),
                b"PK\x03\x04" + old[4:],
                b"PK\x05\x06" + bytes(18),
                b"\x80\x04\x95" + old[3:],
                old[:at] + b"-" * 20 + old[at:],
                b"",
            )
        )
    )
    return set_array(reply, Array("float64", (2, DIM), "numpy.ndarray", new))


def noise(draw: Draw, reply: Message) -> Message:
    return set_array(
        reply, Array("float64", (2, DIM), "numpy.ndarray", draw(st.binary(max_size=60)))
    )


def kind(draw: Draw, reply: Message) -> Message:
    array = reply.content.array_records[ARRAYS][GRADIENTS]
    word = draw(st.sampled_from(("numpy.ndarray", "torch", "", "\n", "pickle")))
    return set_array(reply, Array(array.dtype, array.shape, word, array.data))


def users(draw: Draw, reply: Message) -> Message:
    some = st.lists(st.integers(-1, 4) | st.integers(-(2**63), 2**63 - 1), max_size=3)
    return said(reply, "users", draw(some | st.sampled_from((1, "1,3", [1.0, 3.0], ["1", "3"]))))


def round_tag(draw: Draw, reply: Message) -> Message:
    tags = st.integers(ROUND - 2, ROUND + 1) | st.sampled_from((True, 7.0, "7", [7], b"7"))
    return said(reply, "round", draw(tags))


def said(reply: Message, key: str, value: Any) -> Message:
    reply.content[CONFIG] = ConfigRecord({**reply.content.config_records[CONFIG], key: value})
    return reply


def size(draw: Draw, reply: Message) -> Message:
    """Send too much: numbers, words, metrics, or arrays that nobody asked for."""
    much = draw(st.integers(3000, 9000))
    where = draw(st.integers(0, 3))
    if where == 0:
        return set_array(reply, Array(np.zeros((2, much))))
    if where == 1:
        return said(reply, "story", "x" * much)
    if where == 2:
        reply.content[METRICS] = MetricRecord({"accuracies": [0.5] * much})
        return reply
    reply.content["more"] = ArrayRecord({"more": Array(np.zeros(much))})
    return reply


def records(draw: Draw, reply: Message) -> Message:
    """Drop, rename or add a record or an array."""
    content, where = reply.content, draw(st.integers(0, 5))
    if where < 3:
        del content[(ARRAYS, CONFIG, METRICS)[where]]
    elif where == 3:
        content["more"] = ArrayRecord({GRADIENTS: Array(HONEST)})
    elif where == 4:
        content.array_records[ARRAYS][draw(st.text(max_size=3))] = Array(HONEST)
    else:
        content[ARRAYS] = ArrayRecord({draw(st.text(max_size=3)): Array(HONEST)})
    return reply


def metrics(draw: Draw, reply: Message) -> Message:
    number = st.floats() | st.integers(-(2**63), 2**63 - 1)
    keys = ("worst-residual", "unconverged", "accuracies", "accuracy-users", "poisoned-labels", "x")
    value = number | st.lists(st.floats(), max_size=3) | st.lists(st.integers(0, 4), max_size=3)
    reply.content[METRICS] = MetricRecord({draw(st.sampled_from(keys)): draw(value)})
    return reply


def secret(draw: Draw, reply: Message) -> Message:
    """Bring back something else, or say that something failed."""
    config = dict(reply.content.config_records[CONFIG])
    if draw(st.booleans()):
        config[FAILURE] = draw(st.text(max_size=20))
    else:
        config[NONCE] = draw(st.text(max_size=40) | st.binary(max_size=40) | st.integers(0, 9))
    reply.content[CONFIG] = ConfigRecord(config)
    return reply


def error(draw: Draw, reply: Message) -> Message:
    reason = draw(st.none() | st.text(max_size=20))
    return Message(Error(draw(st.integers(0, 9)), reason), reply_to=reply_question(reply))


def reply_question(reply: Message) -> Message:
    question = Message(pack_question(ROUND, USERS), 1, MessageType.TRAIN)
    question.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
    return question


def lost(draw: Draw, reply: Message) -> None:
    return None


def misdirected(draw: Draw, reply: Message) -> Message:
    reply.metadata.__dict__["_reply_to_message_id"] = draw(st.text(max_size=3))
    return reply


MUTATIONS = (
    entry,
    denormals,
    scale,
    enormous,
    shape,
    rows,
    dtype,
    data,
    noise,
    kind,
    users,
    round_tag,
    size,
    records,
    metrics,
    secret,
    error,
    lost,
    misdirected,
)


@pytest.fixture(scope="module")
def question() -> Message:
    InProcessGrid(lambda *_: None, nodes=1, run_config={})  # type: ignore[arg-type]
    message = Message(pack_question(ROUND, USERS), 1000, MessageType.TRAIN)
    message.metadata.__dict__["_message_id"] = "asked"
    return message


def mutated(draw: Draw, question: Message) -> tuple[Any, list[Message]]:
    mutation = draw(st.sampled_from(MUTATIONS))
    reply = mutation(draw, valid(question))
    return mutation, [] if reply is None else [reply]


@pytest.mark.parametrize(
    ("replies", "least"), [(800, 0), pytest.param(10_000, 100, marks=pytest.mark.slow)]
)
def test_no_reply_stops_the_server_or_leaves_grad(
    replies: int, least: int, question: Message
) -> None:
    """Every reason is met often enough, and at least 5 % of what is sent counts."""
    met: Counter[str] = Counter()

    @seed(1)
    @settings(
        max_examples=1 + replies // len(TURNS),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def judge(data: st.DataObject) -> None:
        for name in TURNS:
            met["replies"] += 1
            met.update(_judged(data, name, question, met))

    judge()
    assert met["replies"] >= replies
    for reason in Reason:
        assert met[reason] >= least, reason
    assert met["accepted"] >= 0.05 * met["replies"]
    assert met["denormals"] >= least


def _judged(data: st.DataObject, name: str, question: Message, met: Counter[str]) -> set[str]:
    mutation, replies = mutated(data.draw, question)
    check = CHECKS[name]
    intake = read_replies([Question(question, USERS)], replies, form=FORM, check=check)
    rho = torch.zeros(DIM, dtype=torch.float64)
    direction, kept, overflow = combine(intake.rows, rho, ETA)
    rejections = [*intake.rejections, *overflow]
    assert sorted([*kept, *(fault.user for fault in rejections)]) == list(USERS)
    assert bool(torch.isfinite(rho - ETA * direction).all())
    for row in kept.values():
        assert row.shape == (DIM,) and bool(torch.isfinite(row).all())
        assert bool(torch.linalg.vector_norm(row) <= check.plausible.radius * (1 + 1e-12))
    for fault in rejections:
        assert len(fault.detail) <= 200 and "\n" not in fault.detail
    assert math.isfinite(intake.metrics.worst_residual)
    if mutation is denormals:
        assert not rejections
        met["denormals"] += 1
    return {str(fault.reason) for fault in rejections} or {"accepted"}


def balls(lam: float) -> dict[str, Regularizer]:
    """Return the regularisers whose GRAD is a ball, those to come included."""
    made = {name: REGULARIZERS.load(name)(lam=lam) for name in REGULARIZERS}
    return {name: one for name, one in made.items() if math.isfinite(one.radius)}


def test_there_are_balls() -> None:
    assert {"l2", "smooth-l2"} <= set(balls(1.0))


@pytest.mark.parametrize("name", balls(1.0))
def test_k_strategic_users_move_rho_by_at_most_eta_k_lam(name: str) -> None:
    """Whatever they send, from the same rho_t, through the server itself, with SGD and the sum."""
    lam, eta, moved = 1.7, 0.3, [0.0]
    config = configure(regularizer=name, lam=lam, server_lr=eta, strategic_users="2-4")
    problem = build_problem(config)
    dim = problem.model.dim
    wish = st.lists(st.floats(width=64), min_size=dim, max_size=dim) | st.lists(
        st.floats(-1e3, 1e3), min_size=dim, max_size=dim
    )

    @settings(max_examples=250, deadline=None, database=None)
    @given(
        here=st.lists(st.floats(-1e3, 1e3), min_size=dim, max_size=dim),
        honest=st.lists(st.floats(-1, 1), min_size=2 * dim, max_size=2 * dim),
        wishes=st.lists(wish, min_size=1, max_size=3),
        how=st.sampled_from(("as drawn", "inside", "at the edge")),
    )
    def holds(here, honest, wishes, how) -> None:  # type: ignore[no-untyped-def]
        sent = torch.tensor(wishes, dtype=torch.float64)
        if how != "as drawn":
            sent = problem.regularizer.project(torch.nan_to_num(sent, 0.0, 1e3, -1e3))
        if how == "at the edge":
            # Outside by less than the tolerance: accepted, and projected.
            sent = sent * lam * (1 + 9e-7) / sent.norm(dim=1, keepdim=True).clamp(min=1e-300)
        rows = torch.tensor(honest, dtype=torch.float64).reshape(2, dim)
        rho = torch.tensor(here, dtype=torch.float64)
        with_them, without_them = (
            _next_rho(problem, rho, rows, strategic) for strategic in (sent, None)
        )
        moved.append(float(torch.linalg.vector_norm(with_them - without_them)) / len(wishes))
        # The last digits of rho itself are lost in both.
        assert moved[-1] * len(wishes) <= eta * len(wishes) * lam + 1e-15 * dim * 1e3

    holds()
    assert max(moved) > 0.9 * eta * lam


def _next_rho(problem, rho, rows, strategic):  # type: ignore[no-untyped-def]
    """Return rho_{t+1} of a server whose strategic users send rows, or nothing."""
    k = 0 if strategic is None else len(strategic)
    server = ParameterServer(problem)
    nodes = {1000: (0, 1), **({1001: tuple(range(2, 2 + k))} if k else {})}
    server.roster = Roster(nodes, frozenset(range(2, 2 + k)))
    server.present = frozenset(nodes)
    grid = InProcessGrid(lambda *_: None, nodes=2, run_config={})
    messages = list(server.configure_train(1, pack_rho(rho), ConfigRecord(), grid))
    replies = []
    for message, gradients in zip(messages, (rows, strategic), strict=False):
        message.metadata.__dict__["_message_id"] = str(message.metadata.dst_node_id)
        report = Report(1, nodes[message.metadata.dst_node_id], gradients)
        content = signed(pack_report(report, NodeMetrics()), nonce_of(message.content))
        replies.append(Message(content, reply_to=message))
    server.aggregate_train(1, [copy.copy(reply) for reply in replies])
    return server.state(1).rho
