"""A strategic user learns its target once a run, though every message has a process of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from clients import learned
from clients.learned import keep_targets, take_targets
from pfl_flower.client_app import app as client_app
from pfl_flower.run import problem
from pfl_flower.run.problem import build_problem
from tests.clients.test_answers import fresh_context
from tests.support.runs import configure, play, trajectory

DIGITS: dict[str, Any] = {"dataset": "digits", "users": 3, "strategic_users": "2", "rounds": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "CGA": {},
    "single precision": {"dtype": "float32", "local_solver": "sgd", "local_lr": 1e-3},
    "two targets": {"users": 4, "strategic_users": "2,3", "target_shift": "1,2"},
    "files": {"checkpoint_every": 1},
}


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The shifts of the targets that nodes learn, each time that they do."""
    shifts: list[int] = []
    learn = problem.learn_target

    def counting(*arguments: Any, **keys: Any) -> torch.Tensor:
        shifts.append(keys["shift"])
        return learn(*arguments, **keys)

    monkeypatch.setattr(problem, "learn_target", counting)
    return shifts


def in_processes(learnt: list[int]) -> ClientApp:
    """Return an app that knows nothing of the message before but its state, as at a site."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        problem._build.cache_clear()
        learnt.append(-1)
        return client_app(message, context)

    for register in (app.query, app.evaluate):
        register()(client_app)
    return app


@pytest.mark.parametrize("name", SETTINGS)
def test_a_target_is_learned_once_and_moves_rho_as_if_it_were_learned_each_time(
    name: str, learnt: list[int], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"state_dir": str(tmp_path)} if "checkpoint_every" in SETTINGS[name] else {}
    config = configure(**{**DIGITS, "points_per_user": 30, **there, **SETTINGS[name]})
    with monkeypatch.context() as patched:
        patched.setattr("clients.strategic.keep_targets", lambda *_: None)
        forgetful = play(config, app=in_processes(learnt), nodes=2)
    shifts = [one for one in learnt if one >= 0]
    assert shifts == list(dict.fromkeys(config.shifts())) * config.rounds
    learnt.clear()
    found = play(config, app=in_processes(learnt), nodes=2)
    assert [one for one in learnt if one >= 0] == list(dict.fromkeys(config.shifts()))
    assert learnt.count(-1) == 2 * config.rounds
    assert torch.equal(trajectory(found), trajectory(forgetful))
    assert all(len(record.strategic_rows) for record in found)
    files = list(tmp_path.rglob("*.pfl"))
    assert bool(files) == bool(there)
    assert not any(learned.LEARNED.encode() in file.read_bytes() for file in files)


def test_a_target_of_other_points_is_learned_anew(learnt: list[int]) -> None:
    config = configure(**DIGITS)
    context, first = fresh_context(config.flat()), build_problem(config)
    expected = first.targets[1]
    keep_targets(first, context.state)
    problem._build.cache_clear()
    learnt.clear()
    take_targets(second := build_problem(config), context.state)
    assert torch.equal(second.targets[1], expected) and learnt == []
    problem._build.cache_clear()
    context.state[learned.SOURCE] = ConfigRecord({"key": "another table"})
    take_targets(third := build_problem(config), context.state)
    assert torch.equal(third.targets[1], expected) and learnt == [1]


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "synthetic-logistic", "features": 6},
        {**DIGITS, "model": "two-layer", "hidden": 4, "local_solver": "sgd", "server_lr": 0.01},
    ],
)
def test_what_is_at_hand_elsewhere_is_not_kept(changes: dict[str, Any]) -> None:
    """Synthetic targets are known; those of other models are in the folder of the cache."""
    config = configure(**changes)
    context, found = fresh_context(config.flat()), build_problem(config)
    assert found.targets
    keep_targets(found, context.state)
    assert not dict(context.state)
