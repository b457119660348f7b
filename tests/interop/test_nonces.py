"""Secrets that go with the questions of a checked strategy: who does not bring them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

import pfl_flower as pfl
from pfl_flower.interop.nonces import KEY, RECORD, Nonces
from pfl_flower.support.tokens import NONCE_BYTES
from pfl_flower.transport.inprocess import InProcessGrid
from tests.interop.apps import CLIENTS, SIZE, client_app, layers, models, packed, play
from tests.interop.test_checked import BAD, without

Change = Callable[[str, dict[int, list[str]]], Any]


UNSEEN = "0" * 2 * NONCE_BYTES


def another(seen: dict[int, list[str]]) -> str:
    """A secret of another node's question, if one was asked before."""
    return next((one[-1] for partition, one in seen.items() if partition != BAD), UNSEEN)


def asked(message: Message) -> str:
    return str(message.content[RECORD][KEY])  # type: ignore[index]


def liar(change: Change, only: str = "train") -> Any:
    """A mod before ours that changes what goes back from one partition; it saw all secrets."""
    seen: dict[int, list[str]] = {}

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        partition = int(context.node_config["partition-id"])
        seen.setdefault(partition, []).append(asked(message))
        secret = asked(message)
        reply: Message = call_next(message, context)
        if partition == BAD and message.metadata.message_type == only:
            changed = change(secret, seen)
            if changed is None:
                del reply.content[RECORD]
            else:
                reply.content[RECORD] = changed
        return reply

    return mod


def checked(**given: Any) -> pfl.Checked:
    return pfl.Checked(FedAvg(**{"fraction_evaluate": 0.0, **given}), nonce=True)


def record(value: Any) -> ConfigRecord:
    return ConfigRecord({KEY: value})


FORGED: dict[str, Change] = {
    "none": lambda secret, seen: None,
    "empty": lambda secret, seen: record(""),
    "another's": lambda secret, seen: record(another(seen)),
    "of the round before": lambda secret, seen: record([UNSEEN, *seen[BAD]][-2]),
    "all but a digit": lambda secret, seen: record(secret[:-1]),
    "a digit more": lambda secret, seen: record(secret + "0"),
    "letters that are none": lambda secret, seen: record("é" * 2 * NONCE_BYTES),
    "a number": lambda secret, seen: record(7),
    "bytes": lambda secret, seen: record(secret.encode()),
    "a list": lambda secret, seen: record([secret]),
    "another key": lambda secret, seen: ConfigRecord({"secret": secret}),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_reply_without_its_questions_secret_is_forged(kind: str) -> None:
    strategy = checked()
    found = models(client_app(liar(FORGED[kind]), pfl.nonce_mod()), strategy)
    np.testing.assert_allclose(found, without(BAD), rtol=1e-12)
    faults = [(server_round, fault.node, fault.reason) for server_round, fault in strategy.faults]
    assert faults == [(number, 1000 + BAD, "forged") for number in (1, 2, 3)]


def test_honest_rounds_stay_as_they_are() -> None:
    strategy = checked()
    found = models(client_app(pfl.nonce_mod()), strategy)
    np.testing.assert_allclose(found, models(client_app()), rtol=1e-12)
    assert strategy.faults == []


def test_app_and_attack_see_no_secret() -> None:
    seen = []

    def looking(message: Message, context: Context, call_next: Any) -> Message:
        seen.append(RECORD in message.content)
        reply: Message = call_next(message, context)
        seen.append(RECORD in reply.content)
        return reply

    attack = pfl.attack_mod("sign-flip", partitions=[BAD])
    found = models(client_app(pfl.nonce_mod(), looking, attack), checked())
    assert seen == [False] * 2 * 3 * CLIENTS
    np.testing.assert_allclose(found, models(client_app(attack)), rtol=1e-12)


def test_secrets_are_fresh_for_every_node_and_question() -> None:
    seen: list[str] = []

    def looking(message: Message, context: Context, call_next: Any) -> Message:
        seen.append(asked(message))
        reply: Message = call_next(message, context)
        return reply

    result, _ = play(client_app(looking, pfl.nonce_mod()), checked(fraction_evaluate=1.0))
    assert len(seen) == len(set(seen)) == 3 * 2 * CLIENTS
    assert {len(secret) for secret in seen} == {2 * NONCE_BYTES}
    assert result.evaluate_metrics_clientapp[3]["accuracy"] == 0.5


def test_evaluations_are_asked_the_same_way() -> None:
    strategy = checked(fraction_evaluate=1.0)
    result, _ = play(
        client_app(liar(FORGED["another's"], only="evaluate"), pfl.nonce_mod()), strategy
    )
    assert [fault.reason for _, fault in strategy.faults] == ["forged"] * 3
    assert result.evaluate_metrics_clientapp[1]["taken-out-forged"] == 1


def test_an_app_without_the_mod_is_told_what_is_missing() -> None:
    with pytest.raises(pfl.interop.checked.TooFewRepliesError, match="5 forged") as caught:
        play(client_app(), checked())
    assert "pfl.nonce_mod()" in caught.value.faults[0].detail


def test_without_secrets_the_mod_is_not_there() -> None:
    found = models(client_app(pfl.nonce_mod()), pfl.Checked(FedAvg(fraction_evaluate=0.0)))
    np.testing.assert_allclose(found, models(client_app()), rtol=1e-12)


def test_a_robust_average_asks_too() -> None:
    strategy = pfl.RobustFedAvg("median", nonce=True, fraction_evaluate=0.0)
    models(client_app(liar(FORGED["none"]), pfl.nonce_mod()), strategy)
    assert [fault.reason for _, fault in strategy.faults] == ["forged"] * 3


def test_a_strategys_one_content_is_left_alone() -> None:
    """All nodes are sent the same records; only the secret is another."""
    content = RecordDict({"config": ConfigRecord({"lr": 0.1})})
    messages = [Message(content, node, "train") for node in (1, 2)]
    Nonces().sign(messages)
    assert list(content) == ["config"]
    assert all(one.content["config"] is content["config"] for one in messages)
    assert asked(messages[0]) != asked(messages[1])


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_nonce_is_true_or_false(value: Any) -> None:
    with pytest.raises(pfl.ConfigError, match=r"^nonce = .*: expected True or False$"):
        pfl.Checked(FedAvg(), nonce=value)


def test_strangers_are_named_as_such_where_all_replies_are() -> None:
    strategy = checked()

    class Grid(InProcessGrid):
        def send_and_receive(self, messages: Any, **options: Any) -> Any:
            question = Message(RecordDict(), 99, "train")
            stranger = Message(RecordDict(), reply_to=question)
            return [*super().send_and_receive(messages, **options), stranger]

    grid = Grid(client_app(pfl.nonce_mod()), nodes=CLIENTS, run_config={})
    strategy.start(grid, packed(layers(np.ones(SIZE))), num_rounds=1)
    assert {(fault.node, fault.reason) for _, fault in strategy.faults} == {(99, "stranger")}
