"""What a node answers: with its question's secret, whatever happens, and twice the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

from clients import answers
from clients.answers import ANSWER, answering
from clients.memory import Memory
from clients.node import Node
from pfl_flower.client_app import app
from pfl_flower.run.problem import build_problem
from pfl_flower.support.files import read_sealed
from pfl_flower.transport.broadcasts import Broadcast, Session, pack_broadcasts
from pfl_flower.transport.flower_internals import identify_process, number
from pfl_flower.transport.nonces import NONCE, failure_in, nonce_of, renewed
from pfl_flower.transport.questions import pack_question
from pfl_flower.transport.records import CONFIG
from tests.support.runs import configure

MEMORIES: dict[str, dict[str, Any]] = {
    "exact": {},
    "adam": {"local_solver": "adam", "local_steps": 3, "batch_size": 4, "server_lr": 0.1},
    "sgd at the same time": {
        "local_solver": "sgd",
        "update_order": "simultaneous",
        "server_lr": 0.1,
    },
    "surrogates": {"attack": "min-max"},
    "noise": {"attack": "gaussian"},
    "labels": {"attack": "label-flip"},
    "with a disk": {"checkpoint_every": 1},
}


def fresh_context(run_config: Any) -> Context:
    return Context(
        run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )


def asked(content: RecordDict, kind: str = MessageType.TRAIN) -> Message:
    identify_process(1)
    return number(Message(content, 7, kind), "m")


def broadcast(config: Any, round: int, rho: torch.Tensor) -> Message:
    users = tuple(range(config.users))
    (content,) = pack_broadcasts(
        [
            Broadcast(
                round=round,
                users=users,
                last_accepted=(round - 1,) * len(users),
                rho=rho,
                eta=0.1,
                eta_sum=0.1 * (round - 1),
                session=Session("abc", 0, 0) if config.checkpoint_every else Session(),
            )
        ]
    )
    return asked(content)


def said(content: RecordDict) -> Any:
    """Return all of a content but its secret, to be compared."""
    found = {name: dict(record.items()) for name, record in content.items()}
    found[CONFIG].pop(NONCE)
    return found


def remembered(state: RecordDict) -> Any:
    return {name: dict(record.items()) for name, record in state.items()}


@pytest.mark.parametrize("name", MEMORIES)
def test_a_repeated_broadcast_is_answered_as_before_and_advances_nothing(
    name: str, tmp_path: Any
) -> None:
    kept_there = {"state_dir": str(tmp_path)} if "checkpoint_every" in MEMORIES[name] else {}
    config = configure(**MEMORIES[name], **kept_there)
    context = fresh_context(config.flat())
    rho = build_problem(config).initial
    before: Any = None
    for round in (1, 2, 3):
        question = broadcast(config, round, rho)
        first = app(question, context)
        kept, files = copy.deepcopy(remembered(context.state)), sorted(tmp_path.rglob("*.pfl"))
        for _ in range(2):
            again = renewed(question)
            reply = app(number(again, "again"), context)
            assert nonce_of(reply.content) == nonce_of(again.content) != nonce_of(first.content)
            assert said(reply.content) == said(first.content)
            assert remembered(context.state) == kept
            assert sorted(tmp_path.rglob("*.pfl")) == files
        assert said(first.content) != before
        before = said(first.content)
        rho = rho - 0.1
    assert nonce_of(first.content) not in repr(kept)


def test_a_broadcast_that_is_not_the_same_is_answered_anew() -> None:
    config = configure(local_solver="adam", server_lr=0.1)
    context = fresh_context(config.flat())
    rho = build_problem(config).initial
    one = app(broadcast(config, 1, rho), context)
    other = broadcast(config, 1, rho)
    other.content.config_records[CONFIG]["eta"] = 0.2
    assert said(app(other, context).content) != said(one.content)


def test_no_disk_keeps_the_last_answer(tmp_path: Any) -> None:
    config = configure(state_dir=str(tmp_path), checkpoint_every=1)
    context = fresh_context(config.flat())
    rho = build_problem(config).initial
    for round in (1, 2):
        app(broadcast(config, round, rho), context)
    (path, *_) = sorted(tmp_path.rglob("round-*.pfl"), reverse=True)
    names = {name.partition("/")[0] for name in read_sealed(path, "memory").arrays}
    assert names and not [name for name in names if name.startswith(ANSWER)]
    assert [name for name in context.state if name.startswith(ANSWER)]
    assert Memory(path.parent).users(2) == list(range(config.users))


@pytest.mark.parametrize("kind", [MessageType.QUERY, MessageType.TRAIN, MessageType.EVALUATE])
@pytest.mark.parametrize(
    "error", [RuntimeError("no\nmore \x1b[31m" + "x" * 5000), SystemExit(3), KeyError()]
)
def test_an_exception_is_an_answer_with_its_reason(
    kind: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, bounded; the next question finds a state in which nothing happened."""

    def failing(self: Node, *_: object) -> None:
        self.state["half"] = _record()
        self.state.pop("kept")
        raise error

    for name in ("introduction", "report", "evaluation"):
        monkeypatch.setattr(Node, name, failing)
    config = configure()
    context = fresh_context(config.flat())
    context.state["kept"] = _record()
    problem = build_problem(config)
    question = (
        broadcast(config, 1, problem.initial)
        if kind == MessageType.TRAIN
        else asked(pack_question(1, (0,)), kind)
    )
    reply = app(question, context)
    reason = failure_in(reply.content)
    assert reason is not None and len(reason) <= 300 and reason.isprintable()
    assert reason.startswith(type(error).__name__)
    assert nonce_of(reply.content) == nonce_of(question.content)
    assert list(context.state) == ["kept"]


def _record() -> Any:
    return ConfigRecord({"a": 1})


@pytest.mark.parametrize("error", [MemoryError("no"), KeyboardInterrupt()])
def test_what_is_the_processs_own_end_is_no_answer(error: BaseException) -> None:
    def failing(message: Message, context: Context) -> RecordDict:
        context.state.clear()
        raise error

    context = fresh_context({})
    context.state["kept"] = _record()
    with pytest.raises(type(error)):
        answering(failing)(asked(pack_question(1, (0,))), context)
    if isinstance(error, MemoryError):
        assert list(context.state) == ["kept"]


def test_a_failure_is_not_remembered_as_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure()
    context = fresh_context(config.flat())
    question = broadcast(config, 1, build_problem(config).initial)
    with monkeypatch.context() as patched:
        patched.setattr(Node, "report", None)
        assert failure_in(app(question, context).content) is not None
    assert not context.state
    assert failure_in(app(question, context).content) is None
    assert answers.QUESTION in context.state
