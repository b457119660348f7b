"""What the server sends in a round, and the answers on local models' accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import WARNING

from flwr.app import ArrayRecord, Message, MessageType

from pfl_flower.support.foreign_text import one_line
from pfl_flower.transport.broadcasts import Broadcast, pack_broadcasts
from pfl_flower.transport.flower_internals import log
from pfl_flower.transport.node_metrics import NodeMetrics
from pfl_flower.transport.nonces import failure_in, genuine, renewed
from pfl_flower.transport.questions import pack_question
from pfl_flower.transport.records import content_bytes, largest_words
from pfl_flower.transport.training_replies import largest_reply

MOST_BYTES = 2**28
"""Of a reply to a message of which nothing more is known: a strategy's own."""


@dataclass(eq=False)
class Question:
    """What a node is asked.

    Attributes
    ----------
    message : Message
        The message that carries it, the last one if it was repeated.
    users : tuple of int
        Whom it asks.
    most : int
        Bytes of a reply's content: more is not read.
    measured : tuple of int
        Whose local models' accuracies may come with a report.
    repeats : int
        How often it was repeated.
    """

    message: Message
    users: tuple[int, ...] = ()
    most: int = MOST_BYTES
    measured: tuple[int, ...] = ()
    repeats: int = 0

    def repeat(self) -> None:
        """Put a new message with a new secret in place of the last one."""
        self.message = renewed(self.message)
        self.repeats += 1

    @property
    def node(self) -> int:
        """The node that is asked."""
        return self.message.metadata.dst_node_id


def call_to(node: int) -> Message:
    """Return a message that takes no state: whoever answers it is there."""
    return Message(pack_question(0, ()), node, MessageType.QUERY, group_id="")


def training_questions(
    told: Mapping[int, Broadcast], measured: Mapping[int, tuple[int, ...]] | None = None
) -> list[Question]:
    """Return a training message to each node with its broadcast.

    ``measured`` are the users, by node, whose local models' accuracies a broadcast asks for.
    """
    rated = measured or {}
    contents = pack_broadcasts(list(told.values()))
    return [
        Question(
            Message(content, node, MessageType.TRAIN, group_id=str(broadcast.round)),
            broadcast.users,
            largest_reply(
                len(broadcast.users), broadcast.rho.nbytes, measured=len(rated.get(node, ()))
            ),
            rated.get(node, ()),
        )
        for (node, broadcast), content in zip(told.items(), contents, strict=True)
    ]


def evaluation_questions(
    round: int, users_of: Mapping[int, tuple[int, ...]], rho: ArrayRecord | None
) -> list[Question]:
    """Return a message to each node that asks how good its users' local models are.

    With ``rho`` it asks how well users are served on their own test sets, and led by a trigger.
    """
    return [
        Question(
            Message(
                pack_question(round, users, rho),
                node,
                MessageType.EVALUATE,
                group_id=str(round),
            ),
            users,
            largest_words(len(users)),
        )
        for node, users in users_of.items()
    ]


def read_evaluations(
    asked: Sequence[Question], replies: Iterable[Message], most: float
) -> NodeMetrics:
    """Return what nodes say of local models, and how much of what came was left out.

    A node speaks once, with the secret of its question, for the users that it was asked about, and
    no longer than that takes: what else comes is left out. ``most`` is the largest value that can
    be on a user's own test set.
    """
    waiting = {question.message.metadata.message_id: question for question in asked}
    said = []
    for reply in replies:
        question = waiting.pop(reply.metadata.reply_to_message_id, None)
        if not reply.has_content() or (question and not genuine(question.message, reply)):
            continue
        if question and content_bytes(reply.content) > question.most:
            said.append(NodeMetrics(absurd=1))
            continue
        said.append(NodeMetrics.unpack(reply.content, question.users if question else (), most))
        if question and (why := failure_in(reply.content)) is not None:
            log(WARNING, "node %d says nothing of its models: %s", question.node, one_line(why))
    return NodeMetrics.merge(said)
