"""What nodes say reaches the server's log and its records as one line, and commands nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from pfl_flower.support.errors import NodesMissingError
from pfl_flower.transport.inprocess import InProcessGrid
from pfl_flower.transport.nonces import NONCE, nonce_of
from pfl_flower.transport.records import CONFIG
from pfl_flower.transport.training_replies import GRADIENTS
from strategies.introductions import Introductions
from tests.support.foreign_texts import (
    TEXTS,
    by_name,
    check_boundary,
    heard,
)
from tests.support.runs import configure, play, tampering


def raising(text: str) -> ClientApp:
    def fail(message: Message, context: Context) -> Message:
        raise RuntimeError(text)

    app = ClientApp()
    for register in (app.query, app.train, app.evaluate):
        register()(fail)
    return app


def from_replies(change: Callable[[Message, Message], Message]) -> list[str]:
    """Return the log of a round in which a node changes its reply, and its rejection's detail."""
    with heard() as lines:
        records = play(configure(rounds=1), app=tampering(4, change))
    details = [one.detail for one in records[0].rejections if one.user == 4]
    assert len(details) == 1
    assert len(details[0]) <= 200
    return [*details, *lines]


def error_reply(text: str) -> list[str]:
    return from_replies(lambda question, _: Message(Error(2, text), reply_to=question))


def names_of_arrays(text: str) -> list[str]:
    def change(question: Message, reply: Message) -> Message:
        for record in reply.content.array_records.values():
            record[text] = record[GRADIENTS]
        return reply

    return from_replies(change)


def claimed_users(text: str) -> list[str]:
    def change(question: Message, reply: Message) -> Message:
        config = reply.content.config_records[CONFIG]
        reply.content[CONFIG] = ConfigRecord({**config, "users": text[:2000]})
        return reply

    return from_replies(change)


def exception_of_a_client(text: str) -> list[str]:
    app = raising(text)
    with heard() as lines, pytest.raises(NodesMissingError) as caught:
        play(configure(rounds=1), app=app)
    assert any("cannot take part" in line for line in lines)
    return [*lines, str(caught.value)]


def role(text: str) -> list[str]:
    app = ClientApp()

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        reply = Message(message.content, reply_to=message)
        said = {"role": text, NONCE: str(nonce_of(message.content))}
        reply.content[CONFIG] = ConfigRecord(said)
        return reply

    with heard() as lines:
        asked = Introductions(configure())
        asked.ask(InProcessGrid(app, nodes=1, run_config={}), [1000], 0)
    assert not asked.known
    assert "cannot take part: " in lines[0]
    return lines


BOUNDARIES = by_name(error_reply, names_of_arrays, claimed_users, exception_of_a_client, role)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kind", TEXTS)
def test_a_foreign_text_is_shown_and_obeyed_nowhere(
    kind: str, boundary: str, request: pytest.FixtureRequest
) -> None:
    check_boundary(BOUNDARIES[boundary], kind, request)


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_client_whose_exception_has_no_text_stops_nobody() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise Mute

    grid = InProcessGrid(app, nodes=1, run_config={})
    question = Message(RecordDict(), 1000, MessageType.TRAIN)
    (reply,) = grid.send_and_receive([question])
    assert reply.error.reason == "a Mute that cannot be shown"
