"""Who said it: every question carries a secret of its own, and only what brings it back counts.

Flower delivers a reply to whatever question it names. It does not compare the node that is said to
have sent it with the one whose key signed the request, and the ids of questions are hashes of what
others can guess; so any registered node can answer for any other. A secret that is drawn anew for
every question, and that only the node that is asked gets to see, tells the two apart, and makes the
ids unguessable besides, for they are hashes of it too.

It is drawn from the operating system, not from a run's seed: it moves nothing.
"""

from __future__ import annotations

from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from pfl_flower.support.tokens import fresh, same
from pfl_flower.transport.records import CONFIG
from pfl_flower.transport.wire import filled, find

NONCE, FAILURE, NO_DEVICE = "nonce", "failure", "no-device"


def nonce_of(content: RecordDict) -> str | None:
    """Return the secret in a question or a reply, None if there is none."""
    config = find(content, CONFIG, ConfigRecord)
    nonce = None if config is None else config.get(NONCE)
    return nonce if isinstance(nonce, str) and nonce else None


def words(content: RecordDict) -> dict[str, Any]:
    """Return all that a question says besides its arrays and its secret."""
    config = find(content, CONFIG, ConfigRecord)
    said = {} if config is None else dict(config.items())
    return {key: value for key, value in said.items() if key != NONCE}


def signed(content: RecordDict, nonce: str | None) -> RecordDict:
    """Return a content that carries a secret, its own again if that is None."""
    if nonce is None:
        return content
    config = filled(ConfigRecord, {**words(content), NONCE: nonce})
    return filled(RecordDict, {**content, CONFIG: config})


def renewed(question: Message) -> Message:
    """Return a question again: a message of its own, with a new secret."""
    asked = question.metadata
    return Message(
        signed(question.content, fresh()),
        asked.dst_node_id,
        asked.message_type,
        ttl=asked.ttl,
        group_id=asked.group_id,
    )


def genuine(question: Message, reply: Message) -> bool:
    """Whether a reply with content brings the question's secret back; none at all is not one."""
    expected, said = nonce_of(question.content), nonce_of(reply.content)
    return expected is not None and said is not None and same(expected, said)


def pack_failure(reason: str, *, no_device: bool = False) -> RecordDict:
    """Return the content with which a node says that it could not answer.

    ``no_device``: because it has not the device that the run asks for.
    """
    return RecordDict({CONFIG: ConfigRecord({FAILURE: reason, NO_DEVICE: no_device})})


def lacks_device(content: RecordDict) -> bool:
    """Whether a node says that it could not answer for want of the run's device."""
    config = find(content, CONFIG, ConfigRecord)
    return config is not None and config.get(NO_DEVICE) is True


def failure_in(content: RecordDict) -> str | None:
    """Return why a node could not answer, as it says; None if it does not say so."""
    config = find(content, CONFIG, ConfigRecord)
    reason = None if config is None else config.get(FAILURE)
    return reason if isinstance(reason, str) else None
