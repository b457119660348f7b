"""Who says who it is: the mute hold nobody up for long, and strangers leave nothing behind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MessageType, RecordDict

from clients import node
from pfl_flower.client_app import app as client_app
from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import build_problem
from pfl_flower.support.errors import DeviceError, NodesMissingError
from pfl_flower.transport.broadcasts import pack_rho
from pfl_flower.transport.flower_internals import NODE_UNAVAILABLE
from pfl_flower.transport.inprocess import InProcessGrid
from pfl_flower.transport.node_metrics import NodeMetrics
from pfl_flower.transport.nonces import nonce_of, signed
from pfl_flower.transport.questions import Introduction, pack_introduction, unpack_introduction
from pfl_flower.transport.records import CONFIG, content_bytes, largest_words
from strategies import asking, introductions, recruiting
from strategies.introductions import Introductions
from strategies.parameter_server import ParameterServer
from strategies.questions import evaluation_questions, read_evaluations
from strategies.round_record import RoundRecord
from tests.support.forging_grid import Posted
from tests.support.runs import configure, play, trajectory

QUERY, TRAIN = MessageType.QUERY, MessageType.TRAIN


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only waiting moves."""
    now = [0.0]
    for module in (asking, introductions, recruiting):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(module.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


class Coming(Posted):
    """Nodes of which some are there in each round, by the number of times that it was looked."""

    here: Callable[[int], Iterable[int]] = staticmethod(lambda look: (1000, 1001))
    looks = -1

    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        return list(self.here(self.looks))


def serve(config: RunConfig, grid: Posted) -> tuple[list[RoundRecord], ParameterServer]:
    problem = build_problem(config)
    records: list[RoundRecord] = []
    server = ParameterServer(problem, on_round=records.append)
    server.recruiter.settle = 0.0
    start, wait = pack_rho(problem.initial), config.reply_timeout
    server.start(grid, start, num_rounds=config.rounds, timeout=wait)
    return records, server


def late(node: int, seconds: float, kind: str = QUERY) -> Callable[[Message], float]:
    return lambda question: (
        seconds
        if question.metadata.dst_node_id == node and question.metadata.message_type == kind
        else 0.0
    )


def posted(config: RunConfig, clock: list[float], nodes: int, **delays: Any) -> Coming:
    inner = InProcessGrid(client_app, nodes=nodes, run_config=config.flat())
    grid = Coming(inner, clock, **delays)
    grid.here = lambda look: range(1000, 1000 + nodes)  # type: ignore[method-assign]
    return grid


def test_a_mute_node_holds_the_start_for_its_deadline_and_no_longer(clock: list[float]) -> None:
    config = configure(rounds=3, introduction_timeout=20.0)
    grid = posted(config, clock, 3, delays=late(1001, 1e9))
    records, server = serve(config, grid)
    assert 20.0 <= clock[0] <= 20.0 + 2 * asking.LONGEST_WAIT
    assert records[0].notices == {"cannot-1001": 1} and not records[1].notices
    assert not any(record.rejections for record in records)
    assert server.roster.nodes.keys() == {1000, 1002}
    assert torch.equal(trajectory(records), trajectory(play(config)))


def test_with_too_few_others_it_is_waited_for_as_long_as_for_a_reply(clock: list[float]) -> None:
    config = configure(rounds=1, min_nodes=2, introduction_timeout=20.0, reply_timeout=90.0)
    records, server = serve(config, posted(config, clock, 2, delays=late(1001, 70.0)))
    assert server.roster.nodes.keys() == {1000, 1001} and not records[0].notices
    assert 70.0 <= clock[0] < 71.0
    with pytest.raises(NodesMissingError, match="min-nodes = 2: 1 of 2 nodes can take part"):
        serve(config, posted(config, clock, 2, delays=late(1001, 95.0)))


class Dying(Coming):
    """Node 1001 dies with its first question, is missed after 30 s, and is back after ``back``.

    Where ``missed`` is false nobody misses it: what it was asked is lost without a word.
    """

    back, missed, code = 70.0, True, NODE_UNAVAILABLE

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        found = []
        for message in messages:
            (identifier,) = super().push_messages([message])
            found.append(identifier)
            if message.metadata.dst_node_id != 1001 or self.clock[0] >= self.back:
                continue
            when = max(self.clock[0], 30.0) if self.missed else 1e9
            self._ready[identifier] = when, Message(Error(self.code, "gone"), reply_to=message)
        return found

    def get_node_ids(self) -> Iterable[int]:
        away = self.missed and 30.0 <= self.clock[0] < self.back
        return [node for node in super().get_node_ids() if node != 1001 or not away]


def dying(config: RunConfig, clock: list[float]) -> Dying:
    grid = Dying(InProcessGrid(client_app, nodes=3, run_config=config.flat()), clock)
    grid.here = lambda look: (1000, 1001, 1002)  # type: ignore[method-assign]
    return grid


@pytest.mark.parametrize("site", [True, False])
@pytest.mark.parametrize("missed", [True, False])
@pytest.mark.parametrize("code", [NODE_UNAVAILABLE, 8, 0])
def test_who_dies_with_its_introduction_is_asked_again_and_takes_part(
    code: int, missed: bool, site: bool, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All nodes are needed: the start waits for the third, whose first question nobody answers.

    In a simulation all are asked for nothing besides, which finds out the living actors; at a site
    the silent one is.
    """
    monkeypatch.setattr(asking, "is_site", lambda grid: site)
    config = configure(rounds=3, min_nodes=3, introduction_timeout=20.0, node_timeout=120.0)
    grid = dying(config, clock)
    grid.missed, grid.code = missed, code
    records, server = serve(config, grid)
    assert server.roster.nodes.keys() == {1000, 1001, 1002}
    assert 70.0 <= clock[0] <= 70.0 + (3.0 if missed else 20.0) + 1.0
    assert not any(record.rejections for record in records)
    assert torch.equal(trajectory(records), trajectory(play(config, nodes=3)))
    # It is asked while it may be there, and nobody else is asked twice.
    queries = [m for _, m in grid.pushed if m.metadata.message_type == QUERY]
    asked = [m.metadata.dst_node_id for m in queries if m.metadata.group_id == "roles"]
    assert asked.count(1000) == asked.count(1002) == 1 and 2 <= asked.count(1001) <= 12
    called = {m.metadata.dst_node_id for m in queries if m.metadata.group_id != "roles"}
    expected = {1001} if site else {1000, 1002}
    assert called == (expected if missed != site else set())


def test_who_dies_with_its_introduction_and_stays_away_is_named(clock: list[float]) -> None:
    config = configure(rounds=1, min_nodes=3, introduction_timeout=20.0, reply_timeout=90.0)
    grid = dying(config, clock)
    grid.back = 1e9
    with pytest.raises(NodesMissingError, match="2 of 3 nodes can take part; not heard of: 1001"):
        serve(config, grid)
    assert 90.0 <= clock[0] <= 92.0


def test_who_dies_with_its_introduction_and_is_not_needed_may_come_later(
    clock: list[float],
) -> None:
    """The others begin; node 1000 goes when it is back, and 1001 takes its users."""
    config = configure(rounds=9, introduction_timeout=20.0)
    grid = dying(config, clock)
    grid.delays = late(1000, 10.0, TRAIN)
    grid.here = lambda look: (1000, 1001, 1002) if clock[0] < 80.0 else (1001, 1002)  # type: ignore
    records, server = serve(config, grid)
    assert server.roster.nodes.keys() == {1001, 1002}
    assert records[0].notices["cannot-1001"] == 1
    assert not any(record.rejections for record in records)


def test_who_was_late_takes_the_users_of_a_node_that_goes(clock: list[float]) -> None:
    """Its answer to the first question comes after 25 s; each round takes 10."""

    def delays(question: Message) -> float:
        return late(1002, 25.0)(question) + late(1000, 10.0, TRAIN)(question)

    config = configure(rounds=6, introduction_timeout=20.0)
    grid = posted(config, clock, 3, delays=delays)
    grid.here = lambda look: (1000, 1002) if look >= 4 else (1000, 1001, 1002)  # type: ignore
    records, server = serve(config, grid)
    assert server.roster.nodes.keys() == {1000, 1002}
    assert not any(record.rejections for record in records)
    assert [record.notices for record in records] == [{"cannot-1002": 1}, {}, {}, {}, {}, {}]
    queries = [m for _, m in grid.pushed if m.metadata.message_type == QUERY]
    assert [m.metadata.dst_node_id for m in queries] == [1000, 1001, 1002]


def test_who_stays_mute_is_asked_again_between_rounds(clock: list[float]) -> None:
    """Its questions have reply-timeout first, introduction-timeout then; no round waits for it."""
    config = configure(rounds=9, introduction_timeout=20.0, reply_timeout=30.0, node_timeout=1.0)

    def delays(question: Message) -> float:
        return late(1001, 1e9)(question) + late(1000, 10.0, TRAIN)(question)

    grid = posted(config, clock, 3, delays=delays)
    records, _ = serve(config, grid)
    asked = [when for when, m in grid.pushed if m.metadata.dst_node_id == 1001]
    assert len(asked) >= 4
    assert all(20.0 <= later - when <= 41.0 for when, later in itertools.pairwise(asked))
    assert sum(sum(record.notices.values()) for record in records) == 1
    assert clock[0] <= 20.0 + 9 * 10.5 + 2


def test_a_mute_stranger_costs_one_round_its_deadline_and_once(clock: list[float]) -> None:
    """It comes, goes and comes again while a user's node is away."""
    config = configure(rounds=8, introduction_timeout=20.0, strategic_users="none")
    grid = posted(config, clock, 3, delays=late(1002, 1e9))
    grid.here = lambda look: (1000, 1001) if look < 2 else ((1000, 1002), (1000,))[look % 2]  # type: ignore
    records, server = serve(config, grid)
    assert 20.0 <= clock[0] <= 22.0
    assert server.roster.nodes.keys() == {1000, 1001}
    assert {str(f.reason) for r in records[1:] for f in r.rejections} == {"no-reply"}


def test_strangers_that_come_and_go_leave_nothing_behind(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each of 40 rounds ten others, of whom half are mute, while a user's node is away."""
    monkeypatch.setattr(introductions, "MOST_REMEMBERED", 30)
    config = configure(rounds=40, introduction_timeout=0.5, strategic_users="none")

    class Crowd(Coming):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            for message in messages:
                node = message.metadata.dst_node_id
                self.inner.contexts.setdefault(node, self.inner.contexts[1000])
            return super().push_messages(messages)

    inner = InProcessGrid(client_app, nodes=2, run_config=config.flat())
    grid = Crowd(inner, clock, lambda question: 1e9 * (question.metadata.dst_node_id % 2))
    grid.delays = lambda question: (
        1e9 if question.metadata.dst_node_id >= 2000 and question.metadata.dst_node_id % 2 else 0.0
    )
    grid.here = lambda look: (  # type: ignore[method-assign]
        (1000, 1001) if look < 2 else (1000, *range(2000 + 10 * look, 2010 + 10 * look))
    )
    records, server = serve(config, grid)
    asked = server.recruiter.introductions
    assert len(asked.known) <= 2 + 10
    assert len(asked._late) <= 30 and len(asked._refused) <= 30 and len(asked._open) <= 10
    assert asked._post is not None and len(asked._post.waiting) <= 10
    assert len(asked._post._until) == len(asked._post.waiting) and not asked._post.heard.replies
    assert len(records) == 40


FEW = 5
BIG = [*range(3_000_000)]
CLAIMS: dict[str, tuple[Any, frozenset[int] | None, int]] = {
    "nothing": ([], frozenset(), 0),
    "all": ([0, 1, 2, 3, 4], frozenset(range(5)), 0),
    "nobody": ([5, -1, 2**60], frozenset(), 3),
    "one twice": ([1, 1], frozenset({1}), 1),
    "words": (["1", "x"], frozenset(), 2),
    "halves": ([0.5, 1.0], frozenset(), 2),
    "a number": (7, frozenset(), 0),
    "bytes": (b"\x00" * 16, frozenset(), 0),
    "too many": ([0] * 700, None, 0),
    "three million": (BIG, None, 0),
    "a long role": (None, None, 0),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_what_a_node_says_it_holds_is_of_users_there_are(name: str) -> None:
    said, holds, absurd = CLAIMS[name]
    words = {"role": "auto", "holds": said} if said is not None else {"role": "x" * 5000}
    content = RecordDict({CONFIG: ConfigRecord(words)})
    if holds is None:
        with pytest.raises(ValueError, match="bytes of introduction: expected <= 4,736"):
            unpack_introduction(content, FEW)
    else:
        assert unpack_introduction(content, FEW) == Introduction("auto", holds, absurd)


@pytest.mark.parametrize("users", [1, 11, 100_000])
def test_there_is_room_for_all_that_there_can_be_to_say(users: int) -> None:
    told = signed(pack_introduction(Introduction("strategic", frozenset(range(users)))), "0" * 32)
    assert unpack_introduction(told, users).holds == frozenset(range(users))
    measured = dict.fromkeys(range(users), 0.5)
    from pfl_flower.run.served import Served

    served = dict.fromkeys(range(users), Served(3, 4, 0.5, 0.5, 0.5))
    metrics = NodeMetrics(accuracies=measured, served=served).pack()
    content = signed(RecordDict({"metrics": metrics}), "0" * 32)
    assert content_bytes(content) <= largest_words(users)


def test_a_node_that_says_too_much_is_left_out_and_the_others_begin(clock: list[float]) -> None:
    config = configure(rounds=1)
    grid = posted(config, clock, 2)
    take = grid.inner.pull_messages

    def boasting(identifiers: Iterable[str]) -> Iterable[Message]:
        for reply in take(identifiers):
            if reply.metadata.src_node_id == 1000 and reply.metadata.message_type == QUERY:
                record = reply.content.config_records[CONFIG]
                reply.content[CONFIG] = ConfigRecord({**record, "holds": [1] * 5000})
            yield reply

    grid.inner.pull_messages = boasting  # type: ignore[method-assign]
    records, server = serve(config, grid)
    assert server.roster.nodes.keys() == {1001}
    assert records[0].notices == {"cannot-1000": 1}


def test_who_is_no_user_is_counted(clock: list[float]) -> None:
    config = configure(rounds=1)
    asked = Introductions(config)
    inner = InProcessGrid(client_app, nodes=1, run_config=config.flat())
    take = inner.pull_messages

    def boasting(identifiers: Iterable[str]) -> Iterable[Message]:
        for reply in take(identifiers):
            record = reply.content.config_records[CONFIG]
            reply.content[CONFIG] = ConfigRecord({**record, "holds": [1, 77]})
            yield reply

    inner.pull_messages = boasting  # type: ignore[method-assign]
    asked.ask(inner, [1000], 0)
    assert asked.known[1000].holds == {1} and asked.notices == {"absurd": 1}


def test_an_evaluation_that_says_too_much_is_left_out() -> None:
    InProcessGrid(client_app, nodes=1, run_config={})
    (question,) = evaluation_questions(3, {1000: (0, 1)}, None)
    question.message.metadata.__dict__["_message_id"] = "asked"
    for much, expected in ((10, {0: 0.5}), (5000, {})):
        metrics = NodeMetrics(accuracies={0: 0.5}).pack()
        words = ConfigRecord({"story": "x" * much})
        content = RecordDict({"metrics": metrics, CONFIG: words})
        reply = Message(
            signed(content, nonce_of(question.message.content)), reply_to=question.message
        )
        found = read_evaluations([question], [reply], 1.0)
        assert found.accuracies == expected and found.absurd == (much > 10)


@pytest.mark.parametrize("site", [False, True], ids=["own nodes", "site"])
def test_a_node_without_the_runs_device(site: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the operator's own nodes it ends the run before round 1; at a site it is left out."""
    config = configure(rounds=2, site=site, strategic_users="none")
    problem, real = build_problem(config), node.build_problem
    line = "device = cuda: expected a CUDA device, and torch sees none"

    def of(context: Context) -> node.Node:
        if context.node_id == 1001:
            raise DeviceError(line)
        return node.Node(real(config, on_node=True), "auto", context.state, "")

    monkeypatch.setattr(node.Node, "of", of)
    grid = InProcessGrid(client_app, nodes=3, run_config=config.flat())
    records: list[RoundRecord] = []
    server = ParameterServer(problem, on_round=records.append)
    if not site:
        with pytest.raises(DeviceError, match=f"^{line}, on node 1001$"):
            server.start(grid, pack_rho(problem.initial), num_rounds=2)
        assert not records
        return
    server.start(grid, pack_rho(problem.initial), num_rounds=2)
    assert [len(record.accepted) for record in records] == [config.users] * 2
    assert records[0].notices["cannot-1001"] == 1
