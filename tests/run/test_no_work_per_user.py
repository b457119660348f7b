"""A round does nothing per user in Python: as many steps of the interpreter for four times as many.

Users of a node are tensors from the broadcast to the server's sum. What grows with their number is
done by torch; here the interpreter's own steps are counted, opcode by opcode.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pytest

from pfl_flower.api import run
from pfl_flower.solvers import user_batch
from strategies.resumable import ResumableStrategy

FEW, MANY = 300, 1200
FIRST = 3
"""The first round that is looked at: before it rosters are laid out, data drawn and read."""
MANY_USERS: dict[str, Any] = {
    "dataset": "synthetic-logistic",
    "features": 5,
    "points_per_user": "8",
    "nu": 0.1,
    "rounds": 4,
    "evaluate_every": 0,
}
CASES: dict[str, dict[str, Any]] = {
    "exact": {},
    "least squares, exact": {"dataset": "synthetic-linear"},
    "Adam": {"local_solver": "adam"},
    "minibatches": {"local_solver": "adam", "batch_size": 4},
    "samples": {"participation": 0.5, "participation_rescale": True},
    "l2": {"regularizer": "l2"},
    "true sum": {"estimator": "oracle"},
    "median": {"aggregation": "median"},
}


@dataclass
class Work:
    """What the interpreter did in the rounds that were looked at.

    Attributes
    ----------
    steps : Counter
        Opcodes, by the file and the function that they are of.
    long : list
        Functions that returned as many entries as there are users, and made them in this round: not
        the same object as before; and arrays of that length that became lists.
    """

    users: int
    steps: Counter[str] = field(default_factory=Counter)
    long: list[str] = field(default_factory=list)
    kept: list[object] = field(default_factory=list)

    def trace(self, frame: FrameType, event: str, value: Any) -> Any:
        """Take an event of ``sys.settrace``."""
        code = frame.f_code
        name = f"{code.co_filename.rpartition('site-packages/')[2]}:{code.co_name}"
        if event == "call":
            if "site-packages/torch" in code.co_filename:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            self.steps[name] += 1
        elif event == "return" and isinstance(value, list | tuple | set | frozenset | dict):
            if len(value) >= self.users - 1 and not any(value is one for one in self.kept):
                self.long.append(name)
                self.kept.append(value)
        return self.trace

    def profile(self, frame: FrameType, event: str, function: Any) -> None:
        """Take an event of ``sys.setprofile``: arrays and tensors that become lists."""
        if event == "c_call" and getattr(function, "__name__", "") == "tolist":
            if len(getattr(function, "__self__", ())) >= self.users - 1:
                self.long.append(f"{frame.f_code.co_filename}:{frame.f_lineno} tolist")


@contextmanager
def watched(work: Work) -> Iterator[None]:
    before = sys.gettrace(), sys.getprofile()
    sys.settrace(work.trace)
    sys.setprofile(work.profile)
    try:
        yield
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])


def work_of(monkeypatch: pytest.MonkeyPatch, users: int, settings: dict[str, Any]) -> Work:
    """Return what the interpreter does in the last rounds of a run with so many users."""
    work, play, close = Work(users), ResumableStrategy._round, ResumableStrategy._close_round

    def played(self: Any, current: int, *args: Any) -> None:
        if current < FIRST:
            return play(self, current, *args)
        with watched(work):
            return play(self, current, *args)

    def closed(self: Any, round: int, *args: Any, **more: Any) -> None:
        if round < FIRST:
            return close(self, round, *args, **more)
        with watched(work):
            close(self, round, *args, **more)
        if round == FIRST:
            work.long.clear()
        return None

    with monkeypatch.context() as patch:
        patch.setattr(ResumableStrategy, "_round", played)
        patch.setattr(ResumableStrategy, "_close_round", closed)
        # One block whatever the number of users, as on a card; a processor's cache holds less.
        patch.setattr(user_batch, "FEATURES_AT_ONCE", 2**30)
        chosen = {**MANY_USERS, "users": users, "strategic_users": str(users - 1), **settings}
        run(nodes=2, **chosen)
    return work


@pytest.mark.parametrize("name", CASES)
def test_no_step_of_the_interpreter_is_a_users(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    few, many = (work_of(monkeypatch, users, CASES[name]) for users in (FEW, MANY))
    rounds = MANY_USERS["rounds"] - FIRST + 1
    grown = many.steps - few.steps
    # A step of Newton's more, of a user among the new ones, takes some hundreds.
    assert max(grown.values(), default=0) < rounds * (MANY - FEW), grown.most_common(5)
    if name != "samples":
        # Who is asked is another set in every round.
        assert not many.long, Counter(many.long)
