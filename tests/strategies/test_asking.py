"""Who said it: a reply without its question's secret is nobody's word, and is asked for again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from pfl_flower import server_app
from pfl_flower.aggregation.reports import Reason
from pfl_flower.client_app import app as client_app
from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import build_problem
from pfl_flower.support import tokens
from pfl_flower.transport import nonces
from pfl_flower.transport.broadcasts import pack_rho
from pfl_flower.transport.inprocess import InProcessGrid
from strategies import asking
from strategies.asking import ERROR_REPLY, FORGED, MOST_REPEATS, ask
from strategies.measuring import Measuring
from strategies.parameter_server import ParameterServer
from strategies.questions import Question
from strategies.round_record import RoundRecord
from tests.support.forging_grid import FORGERIES, ForgedInProcess, Posted, of_node
from tests.support.runs import configure, play, trajectory


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only waiting moves."""
    now = [0.0]
    monkeypatch.setattr(asking.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(asking.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


def serve(
    config: RunConfig, grid: Grid, strategy: type[ParameterServer] = ParameterServer
) -> list[RoundRecord]:
    problem = build_problem(config)
    records: list[RoundRecord] = []
    server = strategy(problem, on_round=records.append)
    server.recruiter.settle = 0.0
    wait = config.reply_timeout
    server.start(grid, pack_rho(problem.initial), num_rounds=config.rounds, timeout=wait)
    return records


SETTINGS: dict[str, dict[str, Any]] = {
    "exact solves, CGA": {},
    "l2, steps on batches": {
        "regularizer": "l2",
        "local_solver": "adam",
        "local_steps": 2,
        "batch_size": 5,
        "server_lr": 0.1,
    },
    "at the same time": {"update_order": "simultaneous", "local_solver": "sgd", "server_lr": 0.1},
    "surrogates": {"attack": "min-max"},
    "noise": {"attack": "gaussian"},
    "oracle": {"estimator": "oracle", "server_optimizer": "adam", "server_lr": 0.1},
    "other labels": {"attack": "label-flip"},
    "in chunks": {"chunk_users": 2},
    "samples": {"participation": 0.6},
    "accuracies": {"evaluate_every": 1},
}


@pytest.mark.parametrize("posted", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_who_is_silenced_after_its_work_answers_again_as_it_did(
    name: str, posted: bool, clock: list[float]
) -> None:
    """Everybody, in every round, in introductions too: to the bit, and counted."""
    config = configure(rounds=4, **SETTINGS[name])
    calm = play(config)
    inner = ForgedInProcess(config, FORGERIES["no secret"][0], times=1)
    records = serve(config, Posted(inner, clock) if posted else inner)
    assert torch.equal(trajectory(records), trajectory(calm))
    assert [r.accuracies for r in records] == [r.accuracies for r in calm]
    for record, expected in zip(records, calm, strict=True):
        assert torch.equal(record.strategic_sum, expected.strategic_sum)
        assert not record.rejections
        assert record.metrics == expected.metrics
        nodes = len({user == 4 for user in record.accepted})
        assert record.notices == {FORGED: nodes + 2 * (record.round == 1)}


@pytest.mark.parametrize("posted", [False, True])
@pytest.mark.parametrize("times", [1, MOST_REPEATS, MOST_REPEATS + 1])
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forger_costs_its_victim_a_round_only_if_it_wins_every_time(
    name: str, times: int, posted: bool, clock: list[float]
) -> None:
    """User 1's node, in round 2."""
    forgery, kind = FORGERIES[name]
    config = configure(rounds=3, regularizer="l2")

    def whose(question: Message) -> bool:
        second = question.metadata.group_id == "2"
        return second and of_node(1)(question)

    inner = ForgedInProcess(config, forgery, times=times, nodes=5, whose=whose)
    first, second, third = serve(config, Posted(inner, clock) if posted else inner)
    assert not first.notices and not third.notices
    assert second.notices == {kind: min(times, 1 + MOST_REPEATS)}
    assert second.as_metrics()[f"left-out-{kind}"] == min(times, 1 + MOST_REPEATS)
    lost = times > MOST_REPEATS
    reason = Reason.FORGED if kind == FORGED else Reason.CLIENT_ERROR
    assert [(f.user, f.reason) for f in second.rejections] == ([(1, reason)] if lost else [])

    class Without(ParameterServer):
        def participants(self, round: int) -> frozenset[int]:
            return super().participants(round) - ({1} if lost and round == 2 else set())

    smooth = play(config, nodes=5, strategy=Without)
    assert torch.equal(second.rho, smooth[1].rho)
    assert (third.rho - smooth[2].rho).abs().max() <= 1e-9


def test_a_node_is_asked_again_at_once_and_has_its_whole_time(clock: list[float]) -> None:
    """Node 1 takes 25 s; node 0 is spoken for after 2, and takes 29 of 30 for its second answer."""
    config = configure(rounds=1, reply_timeout=30.0)
    inner = ForgedInProcess(config, FORGERIES["nothing"][0], times=1, whose=of_node(0))
    taken: list[int] = []

    def delay(question: Message) -> float:
        if question.metadata.message_type != MessageType.TRAIN:
            return 0.0
        node = question.metadata.dst_node_id
        taken.append(node)
        return 25.0 if node == 1001 else 2.0 if taken.count(node) == 1 else 29.0

    grid = Posted(inner, clock, delay)
    (record,) = serve(config, grid)
    assert not record.rejections
    asked = [when for when, one in grid.pushed if one.metadata.message_type == MessageType.TRAIN]
    begun, _, again = asked
    assert sorted(taken[:2]) == [1000, 1001] and taken[2:] == [1000]
    assert 2.0 <= again - begun <= 2.0 + 2 * asking.LONGEST_WAIT
    assert again - begun + 29.0 <= clock[0] - begun <= again - begun + 29.0 + asking.LONGEST_WAIT


def test_who_never_answers_is_not_asked_again(clock: list[float]) -> None:
    config = configure(rounds=1, reply_timeout=30.0)
    grid = Posted(ForgedInProcess(config, FORGERIES["nothing"][0], times=0), clock)
    grid.delays = lambda question: (
        99.0 if of_node(1)(question) and question.metadata.message_type == MessageType.TRAIN else 0
    )
    (record,) = serve(config, grid)
    assert {str(fault.reason) for fault in record.rejections} == {"no-reply"}
    assert not record.notices
    kinds = [one.metadata.message_type for _, one in grid.pushed]
    assert kinds == [MessageType.QUERY] * 2 + [MessageType.TRAIN] * 2
    assert 30.0 <= clock[0] <= 30.0 + asking.LONGEST_WAIT


def test_a_message_that_cannot_be_delivered_is_not_waited_for(clock: list[float]) -> None:
    class Refusing(Posted):
        def push_messages(self, messages):  # type: ignore[no-untyped-def]
            list(super().push_messages(messages))
            return [None]

    config = configure()
    grid = Refusing(InProcessGrid(client_app, nodes=1, run_config=config.flat()), clock)
    question = Question(Message(RecordDict(), 1000, MessageType.QUERY))
    assert ask(grid, [question], 9.0).replies == []
    assert clock[0] == 0.0


class Actors(Posted):
    """Flower's pool of Ray's actors, some of which died with their machine.

    The one that came back last is taken first, and a message waits if nobody is idle. A living one
    takes ``LIVING`` seconds; a dead one fails almost at once and is idle again, but for the first
    time, when that takes a while.
    """

    LIVING, DEAD = 0.01, 0.001

    def __init__(self, inner: InProcessGrid, clock: list[float], idle: list[str]) -> None:
        super().__init__(inner, clock)
        self.idle, self.busy = idle, list[tuple[float, str]]()
        self.missed = 0.0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        found = []
        for message in messages:
            (identifier,) = super().push_messages([message])
            found.append(identifier)
            if message.metadata.group_id == "roles":
                continue
            now = self.clock[0]
            done = sorted(one for one in self.busy if one[0] <= now)
            self.idle += [actor for _, actor in done]
            self.busy = sorted(one for one in self.busy if one[0] > now)
            begins, actor = (now, self.idle.pop()) if self.idle else self.busy.pop(0)
            dead = actor.startswith("dead")
            ends = begins + (self.DEAD if dead else self.LIVING)
            if actor == "dead at last":
                ends, actor = begins + self.missed, "dead"
            self.busy.append((ends, actor))
            reply = self._ready[identifier][1]
            self._ready[identifier] = (
                ends,
                Message(Error(0, "died"), reply_to=message) if dead else reply,
            )
        return found


@pytest.mark.parametrize("living", [0.01, 5.0])
@pytest.mark.parametrize("missed", [0.001, 8.0])
@pytest.mark.parametrize("first", [["dead at last"] * 2, ["living"] * 2])
def test_who_met_a_dead_actor_is_asked_again_when_a_living_one_is_next(
    first: list[str], missed: float, living: float, clock: list[float]
) -> None:
    """Of four actors two die; that is seen at once, or when the living have long been done."""
    config = configure(rounds=6, users=8, strategic_users="7")
    inner = InProcessGrid(client_app, nodes=4, run_config=config.flat())
    others = ["living"] * 2 if "living" not in first else ["dead at last"] * 2
    grid = Actors(inner, clock, [*first, *others])
    grid.LIVING, grid.missed = living, missed
    records = serve(config, grid)
    assert records[0].notices.get(ERROR_REPLY)
    assert not any(record.rejections for record in records)
    assert torch.equal(trajectory(records), trajectory(play(config, nodes=4)))
    assert clock[0] <= missed + 6 * (3 * living + 4 * asking.LONGEST_WAIT)


def test_every_message_has_a_secret_that_none_had_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Introductions, broadcasts, evaluations, repeated or not; one for every node."""
    config = configure(rounds=3, evaluate_every=1)
    # As where users have test sets of their own.
    monkeypatch.setattr(Measuring, "with_reports", lambda *_: {})
    grid = ForgedInProcess(config, FORGERIES["an error"][0], times=1)
    seen: list[str | None] = []
    push = InProcessGrid.push_messages

    def reading(self: InProcessGrid, messages: Any) -> Any:
        asked = list(messages)
        seen.extend(nonces.nonce_of(one.content) for one in asked)
        return push(self, asked)

    monkeypatch.setattr(InProcessGrid, "push_messages", reading)
    records = serve(config, grid)
    assert len(seen) == 2 * (2 + 3 * 2 + 3)  # one node alone acts for honest users
    assert None not in seen and len(set(seen)) == len(seen)
    assert all(len(bytes.fromhex(str(one))) == tokens.NONCE_BYTES for one in seen)
    assert sum(record.notices[ERROR_REPLY] for record in records) == len(seen) // 2


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All secrets of a test."""
    found: list[str] = []
    fresh = tokens.secrets.token_hex

    def telling(size: int) -> str:
        found.append(fresh(size))
        return found[-1]

    monkeypatch.setattr(tokens.secrets, "token_hex", telling)
    return found


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What Flower's logger is told, of all levels."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logger, ear = logging.getLogger("flwr"), Ear()
    level = logger.level
    logger.addHandler(ear)
    logger.setLevel(logging.DEBUG)
    yield heard
    logger.removeHandler(ear)
    logger.setLevel(level)


def test_no_secret_is_written_kept_or_said(
    tmp_path: Path,
    drawn: list[str],
    lines: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Results, checkpoints, nodes' memory on the disk and in Flower's state, logs, output."""
    # Evaluations have messages of their own where users have test sets of their own.
    monkeypatch.setattr(Measuring, "with_reports", lambda *_: {})
    config = configure(
        rounds=3,
        evaluate_every=1,
        checkpoint_every=1,
        save_trajectory=True,
        output_dir=str(tmp_path / "out"),
        state_dir=str(tmp_path / "state"),
    )
    grid = ForgedInProcess(config, FORGERIES["another secret"][0], times=MOST_REPEATS + 1)
    problem = build_problem(config)
    with pytest.raises(Exception, match="min-nodes"):
        server_app.run(grid, problem, folder=config.folder(), say=print)
    grid = ForgedInProcess(config, FORGERIES["no secret"][0], times=2)
    server_app.run(grid, problem, folder=config.folder(), say=print)
    assert len(drawn) == 2 * 4 + 2 * 3 + 3 * 2 * 3 + 3 * 3
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 6
    said = capsys.readouterr()
    places = [*files, "\n".join(lines).encode(), (said.out + said.err).encode()]
    places += [repr(dict(context.state)).encode() for context in grid.contexts.values()]
    for nonce in drawn:
        assert not [place[:80] for place in places if nonce.encode() in place]
        assert not [place[:80] for place in places if bytes.fromhex(nonce) in place]


def test_secrets_are_not_of_the_seed(drawn: list[str]) -> None:
    """Two runs of one configuration are the same, and ask with other secrets."""
    config = configure(rounds=2)
    one, first = trajectory(play(config)), list(drawn)
    other = trajectory(play(config))
    assert torch.equal(one, other)
    assert set(first).isdisjoint(drawn[len(first) :])
