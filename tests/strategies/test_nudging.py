"""A site's node that keeps silent is called; the answer that it held comes, the lost one again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from flwr.app import Error, Message, RecordDict

from pfl_flower.aggregation.reports import Reason
from pfl_flower.client_app import app as client_app
from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import build_problem
from pfl_flower.transport.broadcasts import pack_rho
from pfl_flower.transport.inprocess import FIRST_NODE_ID, InProcessGrid
from pfl_flower.transport.nonces import nonce_of, renewed, signed
from strategies import asking
from strategies.asking import LOST, MOST_REPEATS
from strategies.nudging import AT_ONCE, CALLED_AT_ONCE, FIRST_CALL, SOON, Patience
from strategies.parameter_server import ParameterServer
from strategies.round_record import RoundRecord
from tests.support.forging_grid import Posted
from tests.support.runs import configure, play, trajectory

NODES = 5
WORK, POLL = 4.0, 3.0
"""Seconds of an answer, and between two looks of a SuperNode."""
BOB = FIRST_NODE_ID + 1


class SuperNodes(Posted):
    """Nodes that take one message after the other, as SuperNodes do, on a clock of their own.

    Parameters
    ----------
    config : RunConfig
        The run's.
    clock : list of float
        Its time.
    work : callable
        Seconds that a message takes.
    holding : iterable of int
        Nodes that push an answer when the next message comes, and not before.
    loses : callable
        Whether a node loses a message, which is answered by nobody.
    """

    def __init__(
        self,
        config: RunConfig,
        clock: list[float],
        *,
        work: Callable[[Message], float] = lambda message: WORK,
        holding: Iterable[int] = (),
        loses: Callable[[Message], bool] = lambda message: False,
    ) -> None:
        super().__init__(InProcessGrid(client_app, nodes=NODES, run_config=config.flat()), clock)
        self.work, self.holding, self.loses = work, set(holding), loses
        self.asked: list[Message] = []
        self.free: dict[int, float] = defaultdict(float)
        self.held: dict[int, str] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages, each when its node has done with the last."""
        found: list[str] = []
        for message in messages:
            (name,) = super().push_messages([message])
            found.append(name)
            self.asked.append(message)
            node = message.metadata.dst_node_id
            pulled = max(self.free[node], self.clock[0] + POLL)
            if (before := self.held.pop(node, None)) is not None:
                self._ready[before] = (max(pulled, self._ready[before][0]), self._ready[before][1])
            self.free[node] = ready = pulled + (0.0 if self.loses(message) else self.work(message))
            reply = self._ready[name][1]
            if self.loses(message):
                del self._ready[name]
            elif node in self.holding:
                # When it is ready, but for the next message's coming.
                self.held[node] = name
                self._ready[name] = (ready, reply)
            else:
                self._ready[name] = (ready, reply)
        return found

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return what has been pushed by now, once."""
        held = set(self.held.values())
        return super().pull_messages([one for one in message_ids if one not in held])

    def calls(self, node: int) -> list[Message]:
        """Return the calls that a node got."""
        return [
            one
            for one in self.asked
            if one.metadata.dst_node_id == node and one.metadata.group_id == ""
        ]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only waiting moves, and a site."""
    now = [0.0]
    monkeypatch.setattr(asking.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(asking.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    monkeypatch.setattr(asking, "is_site", lambda grid: True)
    return now


def serve(config: RunConfig, grid: Posted) -> list[tuple[RoundRecord, float]]:
    """Return the rounds, and how long each took."""
    problem = build_problem(config)
    ends: list[tuple[RoundRecord, float]] = []
    server = ParameterServer(problem, on_round=lambda one: ends.append((one, grid.clock[0])))
    server.recruiter.settle = 0.0
    wait = config.reply_timeout
    server.start(grid, pack_rho(problem.initial), num_rounds=config.rounds, timeout=wait)
    begins = [0.0, *(end for _, end in ends)]
    return [(one, end - begin) for (one, end), begin in zip(ends, begins, strict=False)]


def same(served: list[tuple[RoundRecord, float]], config: RunConfig) -> None:
    records = [record for record, _ in served]
    calm = play(config, nodes=NODES)
    assert torch.equal(trajectory(records), trajectory(calm))
    assert not any(record.rejections for record in records)


def rounds(**changes: Any) -> RunConfig:
    return configure(regularizer="l2", reply_timeout=600.0, **changes)


def test_a_node_that_holds_its_answers_back_is_called(clock: list[float]) -> None:
    """First after 30 s; for some rounds at once; then it is tried whether it still does."""
    config = rounds(rounds=CALLED_AT_ONCE + 4)
    grid = SuperNodes(config, clock, holding=[BOB])
    served = serve(config, grid)
    same(served, config)
    assert not any(record.notices for record, _ in served)
    seconds = [time for _, time in served]
    slow, quick = FIRST_CALL + POLL + 1, AT_ONCE + WORK + POLL + 1
    # Round 1 has the introductions too.
    assert FIRST_CALL <= seconds[0] <= slow + quick
    assert max(seconds[1:CALLED_AT_ONCE]) <= quick
    assert FIRST_CALL <= seconds[CALLED_AT_ONCE] <= slow
    assert max(seconds[CALLED_AT_ONCE + 1 :]) <= quick
    assert len(grid.calls(BOB)) == config.rounds + 1
    assert not any(grid.calls(FIRST_NODE_ID + node) for node in range(NODES) if node != 1)


def test_without_calls_it_is_left_out(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking.Nudges, "call", lambda *given: None)
    config = rounds(rounds=2)
    ((first, seconds), _) = serve(config, SuperNodes(config, clock, holding=[BOB]))
    assert first.notices == {f"cannot-{BOB}": 1}
    assert seconds >= config.introduction_timeout


@pytest.mark.parametrize("times", [1, MOST_REPEATS, MOST_REPEATS + 1])
def test_a_lost_question_is_asked_again(times: int, clock: list[float]) -> None:
    """Of round 2, so many times; after the last one its user is missed in that round alone."""
    config = rounds(rounds=3)
    told: Counter[int] = Counter()

    def loses(message: Message) -> bool:
        about = message.metadata
        if about.dst_node_id != BOB or about.group_id != "2":
            return False
        told[id(message)] += 1
        return len(told) <= times

    grid = SuperNodes(config, clock, loses=loses)
    first, second, third = served = serve(config, grid)
    assert not first[0].notices and not third[0].notices
    assert second[0].notices == {LOST: min(times, MOST_REPEATS)}
    if times <= MOST_REPEATS:
        same(served, config)
        each = FIRST_CALL + 2 * POLL + WORK + 1
        assert second[1] <= times * each + POLL + WORK + 1
    else:
        assert [(f.user, f.reason) for f in second[0].rejections] == [(1, Reason.NO_REPLY)]
        assert second[1] >= config.reply_timeout


def test_a_busy_node_is_called_once_a_question_and_less_and_less(clock: list[float]) -> None:
    """Its answers take 100 s: it is called in rounds 1 and 2, and later no more."""
    config = rounds(rounds=5)

    def work(message: Message) -> float:
        about = message.metadata
        return 100.0 if about.dst_node_id == BOB and about.group_id.isdigit() else WORK

    grid = SuperNodes(config, clock, work=work)
    served = serve(config, grid)
    same(served, config)
    assert not any(record.notices for record, _ in served)
    assert len(grid.calls(BOB)) == 2
    assert served[-1][1] <= 100.0 + POLL + 1


ANSWERS: dict[str, Callable[[Message, Message], Message]] = {
    "no secret": lambda call, reply: _instead(reply, RecordDict()),
    "another secret": lambda call, reply: _instead(
        reply, signed(reply.content, nonce_of(renewed(call).content))
    ),
    "an error": lambda call, reply: Message(Error(5, "gone"), reply_to=call),
}


def _instead(reply: Message, content: RecordDict) -> Message:
    reply.content = content
    return reply


@pytest.mark.parametrize("name", ANSWERS)
def test_only_the_node_itself_says_that_its_question_is_lost(name: str, clock: list[float]) -> None:
    """Others answer its calls, at once, while it is at work; it is asked once, and called once."""
    config = rounds(rounds=2)
    forged: list[str] = []

    class Forged(SuperNodes):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            given = list(messages)
            found = list(super().push_messages(given))
            for message, own in zip(given, found, strict=True):
                if message.metadata.group_id == "":
                    reply = ANSWERS[name](message, self._ready[own][1])
                    reply.metadata.__dict__["_reply_to_message_id"] = own
                    self._ready[own] = (self.clock[0], reply)
                    forged.append(own)
            return found

    def work(message: Message) -> float:
        return 45.0 if message.metadata.dst_node_id == BOB else WORK

    served = serve(config, Forged(config, clock, work=work))
    same(served, config)
    assert forged and len(forged) <= config.rounds + 1
    assert not any(record.notices for record, _ in served)


def test_what_calls_have_shown_of_a_node() -> None:
    patience = Patience()
    assert patience.seconds(1) == FIRST_CALL
    for calls in range(1, 20):
        patience.learn(1, SOON + 1)
        assert patience.seconds(1) == FIRST_CALL * 2 ** min(calls, 6)
    patience.learn(1, SOON)
    for _ in range(CALLED_AT_ONCE):
        assert patience.seconds(1) == AT_ONCE
        patience.learn(1, 1000.0)
    assert patience.seconds(1) == FIRST_CALL
    assert patience.seconds(2) == FIRST_CALL


@pytest.mark.parametrize("late", range(10))
def test_an_answer_that_comes_while_it_is_looked_for_is_not_lost(
    late: int, clock: list[float]
) -> None:
    """To pull takes a while; the question is answered in it, and the call a moment later."""

    class Slow(SuperNodes):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            found = list(super().pull_messages(message_ids))
            self.clock[0] += 0.2
            return found

    def work(message: Message) -> float:
        about = message.metadata
        if about.dst_node_id != BOB:
            return WORK
        return 0.05 if about.group_id == "" else 31.0 + 0.1 * late

    config = rounds(rounds=1)
    grid = Slow(config, clock, work=work)
    served = serve(config, grid)
    same(served, config)
    assert grid.calls(BOB) and not served[0][0].notices
