"""Accuracies of local models come with the reports: the same numbers, in fewer messages."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp

from clients.honest import HonestClient
from pfl_flower.client_app import app as client_app
from strategies.measuring import Measuring
from strategies.round_record import RoundRecord
from tests.support.faults import FAULTS, HARMLESS
from tests.support.runs import configure, play, tampering, trajectory

FAULTY = 1
SETTINGS: dict[str, dict[str, Any]] = {
    "exact solves": {},
    "each second round": {"evaluate_every": 2, "rounds": 5},
    "steps": {"local_solver": "adam", "local_steps": 2, "batch_size": 5, "server_lr": 0.1},
    "at the same time": {"update_order": "simultaneous", "local_solver": "sgd", "server_lr": 0.1},
    "in chunks": {"chunk_users": 2},
    "samples": {"participation": 0.4},
    "omniscient": {"attack-knowledge": "omniscient"},
    "other labels": {"attack": "label-flip"},
    "ditto": {"personalization": "ditto"},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many messages of each kind nodes have been sent."""
    kinds: Counter[str] = Counter()
    call = ClientApp.__call__

    def counting(self: ClientApp, message: Message, context: Context) -> Message:
        if self is client_app:
            kinds[message.metadata.message_type] += 1
        return call(self, message, context)

    monkeypatch.setattr(ClientApp, "__call__", counting)
    return kinds


def by_messages(monkeypatch: pytest.MonkeyPatch, **run: Any) -> list[RoundRecord]:
    """Play a run in which every node is asked after the round."""
    with monkeypatch.context() as patched:
        patched.setattr(Measuring, "with_reports", lambda *_: {})
        return play(**run)


@pytest.mark.parametrize("nodes", [1, 2, 5])
@pytest.mark.parametrize("name", SETTINGS)
def test_they_are_those_that_messages_of_their_own_would_bring(
    name: str, nodes: int, asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(**{"evaluate_every": 1, "rounds": 3, **SETTINGS[name]})
    apart = by_messages(monkeypatch, config=config, nodes=nodes)
    before, asks = asked.copy(), asked[MessageType.EVALUATE]
    found = play(config, nodes=nodes)
    assert [one.accuracies for one in found] == [one.accuracies for one in apart]
    assert torch.equal(trajectory(found), trajectory(apart))
    due = [bool(one.accuracies) for one in found]
    every = config.evaluate_every
    assert due == [one.round % every == 0 or one.round == config.rounds for one in found]
    assert all(set(one.accuracies) == {0, 1, 2, 3} for one in found if one.accuracies)
    assert asked[MessageType.TRAIN] == 2 * before[MessageType.TRAIN]
    saved = asks - (asked[MessageType.EVALUATE] - asks)
    assert 0 < saved <= asks
    if config.participation == 1:
        assert saved == asks


@pytest.mark.parametrize(
    "name", ["another's accuracy", "accuracy above 1", "accuracies of nobody", "NaN metrics"]
)
def test_a_bad_accuracy_is_counted_and_costs_no_report(name: str, asked: Counter[str]) -> None:
    tamper, absurd = HARMLESS[name]
    config = configure(rounds=2, evaluate_every=1)
    for record in play(config, nodes=5, app=tampering(FAULTY, tamper)):
        assert sorted(record.accepted) == [0, 1, 2, 3, 4] and not record.rejections
        assert record.notices == {"absurd": absurd}
        # Who has not said a word of it with the report is asked.
        silent = name == "NaN metrics"
        assert set(record.accuracies) == ({0, 1, 2, 3} if silent else {0, 2, 3})


def test_accuracies_that_nobody_asked_for_are_counted() -> None:
    tamper, absurd = HARMLESS["another's accuracy"]
    for record in play(configure(rounds=2), nodes=5, app=tampering(FAULTY, tamper)):
        assert record.notices == {"absurd": absurd} and not record.accuracies


@pytest.mark.parametrize("name", ["an exception", "garbage", "float32", "NaN"])
def test_who_had_no_report_is_asked_after_the_round(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: dict[str, Any] = {
        "config": configure(rounds=2, evaluate_every=1),
        "nodes": 5,
        "app": tampering(FAULTY, FAULTS[name][0]),
    }
    apart, found = by_messages(monkeypatch, **run), play(**run)
    assert [one.accuracies for one in found] == [one.accuracies for one in apart]
    assert FAULTY in found[0].accuracies and FAULTY in {one.user for one in found[0].rejections}


def test_what_cannot_be_measured_costs_no_report(
    asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: HonestClient) -> dict[int, float]:
        raise RuntimeError("no test set")

    monkeypatch.setattr(HonestClient, "evaluate", failing)
    for record in play(configure(rounds=2, evaluate_every=1)):
        assert len(record.accepted) == 5 and not record.rejections and not record.accuracies
    # The server asks once more, and hears why.
    assert asked[MessageType.EVALUATE] == 2


def test_many_models_of_a_node_of_whom_few_report_fit_in_its_reply() -> None:
    """Of 600 users a round asks six; the accuracies of all take more than the rest may."""
    config = configure(
        users=600, strategic_users="none", points_per_user=5, participation=0.01, evaluate_every=1
    )
    first, *_ = play(config, nodes=1)
    assert len(first.accepted) == 6 and not first.rejections and not first.notices
    assert set(first.accuracies) == set(range(600))
