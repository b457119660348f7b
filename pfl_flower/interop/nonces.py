"""Who said it: a secret goes with each question of a checked strategy, and must come back.

Flower delivers a reply to whatever question it names. It does not compare the node that is said to
have sent it with the one whose key signed the request, so that a registered node can answer for
another whose message it guesses. The secret is drawn anew for every message, and only the node that
is asked gets to see it; it comes from the operating system, not from a seed, and moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flwr.app import ConfigRecord, Context, Message, RecordDict

from pfl_flower.interop.checks import Fault
from pfl_flower.support.tokens import fresh, same

RECORD, KEY = "pfl-nonce", "nonce"
NOT_BACK = "the secret of its question did not come back: forged, or an app without pfl.nonce_mod()"

Next = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, Next], Message]


def nonce_mod() -> Mod:
    """Return the mod that brings the secret of a question back: first in ``ClientApp(mods=[...])``.

    For a server whose strategy is ``Checked(..., nonce=True)``. The app, and the mods after this
    one, see neither the secret nor its record; messages without one pass as they are.
    """

    def mod(message: Message, context: Context, call_next: Next) -> Message:
        if not message.has_content() or RECORD not in message.content:
            return call_next(message, context)
        secret = message.content.pop(RECORD)
        reply = call_next(message, context)
        if reply.has_content():
            reply.content[RECORD] = secret
        return reply

    return mod


class Nonces:
    """The secrets of the questions that were asked last."""

    def __init__(self) -> None:
        self._asked: dict[int, str] = {}

    def sign(self, messages: Iterable[Message]) -> None:
        """Put a fresh secret into each message; those of the questions before are forgotten.

        Strategies send one content to all nodes, so each message gets a content of its own; its
        records, the model among them, are the same objects.
        """
        self._asked = {}
        for message in messages:
            secret = fresh()
            self._asked[message.metadata.dst_node_id] = secret
            record = ConfigRecord({KEY: secret})
            message.content = RecordDict({**message.content, RECORD: record})

    def split(self, replies: Iterable[Message]) -> tuple[list[Message], list[Fault]]:
        """Return the replies that bring their question's secret back, without it, and the others.

        Errors have no content, and a node that was not asked has no question: both are judged where
        all replies are.
        """
        kept, faults = [], []
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error() or node not in self._asked or self._genuine(node, reply.content):
                kept.append(reply)
            else:
                faults.append(Fault(node, "forged", NOT_BACK))
        return kept, faults

    def _genuine(self, node: int, content: RecordDict) -> bool:
        record = content.pop(RECORD, None)
        said = record.get(KEY) if isinstance(record, ConfigRecord) else None
        return isinstance(said, str) and same(self._asked[node], said)
