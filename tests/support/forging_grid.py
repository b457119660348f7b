"""Grids on which somebody answers for others: once in this process, once as a SuperLink would."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from pfl_flower.client_app import app as client_app
from pfl_flower.run.config import RunConfig
from pfl_flower.transport.flower_internals import NODE_UNAVAILABLE, Run, number
from pfl_flower.transport.inprocess import FIRST_NODE_ID, InProcessGrid
from pfl_flower.transport.nonces import pack_failure, signed
from pfl_flower.transport.records import CONFIG

Forgery = Callable[[Message, Message], Message]
"""From a question and the right reply to it, to what arrives in its place."""


def without_secret(question: Message, reply: Message) -> Message:
    config = {key: value for key, value in reply.content[CONFIG].items() if key != "nonce"}
    content = RecordDict({**reply.content, CONFIG: ConfigRecord(config)})  # type: ignore[dict-item]
    return Message(content, reply_to=question)


def another_secret(question: Message, reply: Message) -> Message:
    return Message(signed(reply.content, "0" * 32), reply_to=question)


def nothing(question: Message, reply: Message) -> Message:
    return Message(RecordDict(), reply_to=question)


def failure(question: Message, reply: Message) -> Message:
    return Message(pack_failure("it has failed, believe me"), reply_to=question)


def error(question: Message, reply: Message) -> Message:
    return Message(Error(NODE_UNAVAILABLE, "gone, believe me"), reply_to=question)


FORGERIES: dict[str, tuple[Forgery, str]] = {
    "no secret": (without_secret, "forged"),
    "another secret": (another_secret, "forged"),
    "nothing": (nothing, "forged"),
    "a failure": (failure, "forged"),
    "an error": (error, "error-reply"),
}
"""What a forger sends, and what it is counted as."""


class ForgedInProcess(InProcessGrid):
    """The nodes of ``whose`` answer, and something else arrives: of each question ``times`` times.

    A node that is silenced has done its work, and keeps what it remembers of it.
    """

    def __init__(
        self,
        config: RunConfig,
        forgery: Forgery,
        *,
        times: int,
        nodes: int = 2,
        whose: Callable[[Message], bool] = lambda question: True,
    ) -> None:
        super().__init__(client_app, nodes=nodes, run_config=config.flat())
        self.forgery, self.times, self.whose = forgery, times, whose
        self._told: dict[tuple[int, str, str], int] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return what arrives."""
        return [self._arriving(reply) for reply in super().pull_messages(message_ids)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages, and remember them."""
        asked = list(messages)
        identifiers = list(super().push_messages(asked))
        self.asked = dict(zip(identifiers, asked, strict=True))
        return identifiers

    def _arriving(self, reply: Message) -> Message:
        question = self.asked[reply.metadata.reply_to_message_id]
        what = question.metadata
        key = (what.dst_node_id, what.message_type, what.group_id)
        self._told[key] = self._told.get(key, 0) + 1
        if self._told[key] > self.times or not self.whose(question):
            return reply
        return self.forgery(question, reply)


class Posted(Grid):
    """A grid that is not of this process, as far as the server sees: a post in front of another.

    ``delays`` says how many seconds of a clock that only waiting moves an answer takes.
    """

    def __init__(
        self,
        inner: InProcessGrid,
        clock: list[float],
        delays: Callable[[Message], float] = lambda question: 0.0,
    ) -> None:
        self.inner, self.clock, self.delays = inner, clock, delays
        self.pushed: list[tuple[float, Message]] = []
        self._ready: dict[str, tuple[float, Message]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages; those to nodes that nobody knows are not taken."""
        found: list[str] = []
        for message in messages:
            self.pushed.append((self.clock[0], message))
            (identifier,) = self.inner.push_messages([message])
            (reply,) = self.inner.pull_messages([identifier])
            own = f"own-{identifier}"
            number(message, own)
            reply.metadata.__dict__["_reply_to_message_id"] = own
            self._ready[own] = (self.clock[0] + self.delays(message), reply)
            found.append(own)
        return found

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return what has come by now, once."""
        due = [one for one in message_ids if self._ready.get(one, (1e99,))[0] <= self.clock[0]]
        return [self._ready.pop(one)[1] for one in due]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Nobody waits for all here."""
        raise AssertionError("the server waits for all of a round before it asks again")

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes behind it."""
        return self.inner.get_node_ids()

    def create_message(self, *args: object, **named: object) -> Message:
        """Nobody makes messages here."""
        raise NotImplementedError

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self.inner.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self.inner.run


def of_node(position: int) -> Callable[[Message], bool]:
    """Return whether a question is that node's."""
    return lambda question: question.metadata.dst_node_id == FIRST_NODE_ID + position
