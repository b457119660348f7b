"""What the server sends in a round, and the answers on local models' accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from flwr.app import ArrayRecord, Message, MessageType

from pfl_flower.transport.broadcasts import Broadcast, pack_broadcasts
from pfl_flower.transport.node_metrics import NodeMetrics
from pfl_flower.transport.questions import pack_question


class Question(NamedTuple):
    """A message to a node, and the users it asks."""

    message: Message
    users: tuple[int, ...]

    @property
    def node(self) -> int:
        """The node that is asked."""
        return self.message.metadata.dst_node_id


def training_questions(told: Mapping[int, Broadcast]) -> list[Question]:
    """Return a training message to each node with its broadcast."""
    contents = pack_broadcasts(list(told.values()))
    return [
        Question(
            Message(content, node, MessageType.TRAIN, group_id=str(broadcast.round)),
            broadcast.users,
        )
        for (node, broadcast), content in zip(told.items(), contents, strict=True)
    ]


def evaluation_questions(
    round: int, users_of: Mapping[int, tuple[int, ...]], rho: ArrayRecord | None
) -> list[Question]:
    """Return a message to each node that asks how good its users' local models are.

    With ``rho`` it asks how well users are served on their own test sets, too.
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
        )
        for node, users in users_of.items()
    ]


def read_evaluations(
    asked: Sequence[Question], replies: Iterable[Message], most: float
) -> NodeMetrics:
    """Return what nodes say of local models, and how much of what came was left out.

    A node speaks once, and for the users that it was asked about; ``most`` is the largest value
    that can be on a user's own test set.
    """
    users = {message.metadata.message_id: users for message, users in asked}
    said = [
        NodeMetrics.unpack(reply.content, users.pop(reply.metadata.reply_to_message_id, ()), most)
        for reply in replies
        if reply.has_content()
    ]
    return NodeMetrics.merge(said)
