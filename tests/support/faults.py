"""What can be wrong with a client's reply, and with how it arrives: one row a fault."""

from __future__ import annotations

import copy
import io
import math
import struct
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from pfl_flower.aggregation.reports import Reason
from pfl_flower.transport.broadcasts import unpack_broadcast
from pfl_flower.transport.node_metrics import METRICS
from pfl_flower.transport.nonces import nonce_of
from pfl_flower.transport.records import ARRAYS, CONFIG
from pfl_flower.transport.training_replies import GRADIENTS
from tests.support.runs import Tamper

BALLS = ("l2", "smooth-l2")
ALL = ("squared-l2", *BALLS)


def with_gradients(change: Callable[[np.ndarray], np.ndarray]) -> Tamper:
    """Return a client that reports a changed gradient."""

    def tamper(broadcast: Message, reply: Message) -> Message:
        honest = reply.content.array_records[ARRAYS][GRADIENTS].numpy()
        changed = Array(np.asarray(change(honest)))
        reply.content[ARRAYS] = ArrayRecord({GRADIENTS: changed})
        return reply

    return tamper


def with_config(**changes: object) -> Tamper:
    """Return a client that says something else of its report."""

    def tamper(broadcast: Message, reply: Message) -> Message:
        record = dict(reply.content.config_records[CONFIG])
        record.update(changes)  # type: ignore[arg-type]
        reply.content[CONFIG] = ConfigRecord(record)
        return reply

    return tamper


def last_rounds_tag(broadcast: Message, reply: Message) -> Message:
    current = broadcast.content.config_records[CONFIG]["round"]
    return with_config(round=current - 1)(broadcast, reply)  # type: ignore[operator]


def neighbours_id(broadcast: Message, reply: Message) -> Message:
    (own,) = unpack_broadcast(broadcast.content, torch.device("cpu")).users
    return with_config(users=[own + 1])(broadcast, reply)


def nothing(broadcast: Message, reply: Message) -> Message:
    return Message(RecordDict(), reply_to=broadcast)


def extra_array(broadcast: Message, reply: Message) -> Message:
    reply.content.array_records[ARRAYS]["more"] = Array(np.zeros(2))
    return reply


def wrong_name(broadcast: Message, reply: Message) -> Message:
    array = reply.content.array_records[ARRAYS][GRADIENTS]
    reply.content[ARRAYS] = ArrayRecord({"gradient": array})
    return reply


def with_bytes(data: bytes, kind: str = "numpy.ndarray") -> Tamper:
    """Return a client that sends these bytes as its array."""

    def tamper(broadcast: Message, reply: Message) -> Message:
        reply.content[ARRAYS] = ArrayRecord({GRADIENTS: Array("float64", (1, 6), kind, data)})
        return reply

    return tamper


def header(text: str) -> bytes:
    """Return an npy file of no data under a header of one's own."""
    line = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line


def shape(of: str) -> bytes:
    return header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {of}, }}")


def archive() -> bytes:
    body = io.BytesIO()
    np.savez(body, gradients=np.zeros((1, 6)))
    return body.getvalue()


def with_metrics(**changes: Any) -> Tamper:
    """Return a client that says this of its work."""

    def tamper(broadcast: Message, reply: Message) -> Message:
        said = {key.replace("_", "-"): value for key, value in changes.items()}
        reply.content[METRICS] = MetricRecord(said)
        return reply

    return tamper


def second_record(broadcast: Message, reply: Message) -> Message:
    reply.content["more"] = ArrayRecord({"more": Array(np.zeros(2))})
    return reply


def long_story(broadcast: Message, reply: Message) -> Message:
    return with_config(story="x" * 10_000)(broadcast, reply)


def no_config(broadcast: Message, reply: Message) -> Message:
    del reply.content[CONFIG]
    return reply


def half_the_secret(broadcast: Message, reply: Message) -> Message:
    nonce = str(nonce_of(reply.content))
    return with_config(nonce=nonce[: len(nonce) // 2])(broadcast, reply)


def metrics_for_arrays(broadcast: Message, reply: Message) -> Message:
    content = {name: record for name, record in reply.content.items() if name != ARRAYS}
    return Message(RecordDict({**content, ARRAYS: MetricRecord({"x": 1})}), reply_to=broadcast)


def died(broadcast: Message, reply: Message) -> Message:
    """Return what Flower sends for a process that died before it answered."""
    return Message(Error(0, "the process died\nunexpectedly"), reply_to=broadcast)


def leaving(broadcast: Message, reply: Message) -> Message:
    sys.exit("no more")


def raising(broadcast: Message, reply: Message) -> Message:
    raise RuntimeError("out of\nmemory")


FAULTS: dict[str, tuple[Tamper, Reason, tuple[str, ...]]] = {
    "ten times lam": (
        with_gradients(lambda g: 10 * g / np.linalg.norm(g)),
        Reason.OUTSIDE_GRAD,
        BALLS,
    ),
    "huge numbers": (with_gradients(lambda g: g * 0 + 1e200), Reason.OUTSIDE_GRAD, BALLS),
    "NaN": (with_gradients(lambda g: g * math.nan), Reason.NOT_FINITE, ALL),
    "infinite": (with_gradients(lambda g: g * math.inf), Reason.NOT_FINITE, ALL),
    "too long": (with_gradients(lambda g: np.hstack([g, g[:, :1]])), Reason.WRONG_SHAPE, ALL),
    "too short": (with_gradients(lambda g: g[:, :-1]), Reason.WRONG_SHAPE, ALL),
    "length one": (with_gradients(lambda g: g[0, :1]), Reason.WRONG_SHAPE, ALL),
    "one column": (with_gradients(lambda g: g[:, :1]), Reason.WRONG_SHAPE, ALL),
    "a number": (with_gradients(lambda g: g.sum()), Reason.WRONG_SHAPE, ALL),
    "nothing in it": (with_gradients(lambda g: g[:, :0]), Reason.WRONG_SHAPE, ALL),
    "two rows": (with_gradients(lambda g: np.vstack([g, g])), Reason.WRONG_ROWS, ALL),
    "no row": (with_gradients(lambda g: g[:0]), Reason.WRONG_ROWS, ALL),
    "float32": (with_gradients(lambda g: g.astype(np.float32)), Reason.WRONG_DTYPE, ALL),
    "integers": (with_gradients(lambda g: g.astype(np.int64)), Reason.WRONG_DTYPE, ALL),
    "complex": (with_gradients(lambda g: g.astype(np.complex128)), Reason.WRONG_DTYPE, ALL),
    "text": (with_gradients(lambda g: g.astype("U3")), Reason.MALFORMED, ALL),
    "foreign byte order": (with_gradients(lambda g: g.astype(">f8")), Reason.MALFORMED, ALL),
    "a record": (with_gradients(lambda g: np.zeros(1, "f8,i8")), Reason.MALFORMED, ALL),
    "huge": (with_gradients(lambda g: np.zeros((1, 100_000))), Reason.TOO_LARGE, ALL),
    "a long story": (long_story, Reason.TOO_LARGE, ALL),
    "many ids": (with_config(users=list(range(10_000))), Reason.TOO_LARGE, ALL),
    "many metrics": (with_metrics(accuracies=[0.5] * 10_000), Reason.TOO_LARGE, ALL),
    "another's id": (neighbours_id, Reason.WRONG_USERS, ALL),
    "another's id too": (with_config(users=[0, 1]), Reason.WRONG_USERS, ALL),
    "nobody's id": (with_config(users=[]), Reason.WRONG_USERS, ALL),
    "nobody's id in bytes": (with_config(users=b"\xff" * 8), Reason.WRONG_USERS, ALL),
    "half an id": (with_config(users=bytes(4)), Reason.MALFORMED, ALL),
    "no ids": (with_config(users="1"), Reason.MALFORMED, ALL),
    "an id that is true": (with_config(users=[True]), Reason.MALFORMED, ALL),
    "round as text": (with_config(round="1"), Reason.MALFORMED, ALL),
    "last round's report": (last_rounds_tag, Reason.WRONG_ROUND, ALL),
    "nothing": (nothing, Reason.FORGED, ALL),
    "no ids nor round": (no_config, Reason.FORGED, ALL),
    "an empty secret": (with_config(nonce=""), Reason.FORGED, ALL),
    "a guessed secret": (with_config(nonce="0" * 32), Reason.FORGED, ALL),
    "a secret in bytes": (with_config(nonce=b"0" * 32), Reason.FORGED, ALL),
    "half the secret": (half_the_secret, Reason.FORGED, ALL),
    "a secret that is not ASCII": (with_config(nonce="\u0663" * 32), Reason.FORGED, ALL),
    "a failure, as it says": (with_config(failure="no"), Reason.CLIENT_ERROR, ALL),
    "a failure of a megabyte": (with_config(failure="no\n" * 400_000), Reason.CLIENT_ERROR, ALL),
    "a failure that is no text": (with_config(failure=1, users="1"), Reason.MALFORMED, ALL),
    "metrics for arrays": (metrics_for_arrays, Reason.MISSING_ARRAYS, ALL),
    "an extra array": (extra_array, Reason.MISSING_ARRAYS, ALL),
    "an extra record": (second_record, Reason.MISSING_ARRAYS, ALL),
    "another name": (wrong_name, Reason.MISSING_ARRAYS, ALL),
    "garbage": (with_bytes(b"\x93NUMPY garbage"), Reason.MALFORMED, ALL),
    "no bytes": (with_bytes(b""), Reason.MALFORMED, ALL),
    "pickled objects": (with_bytes(b"\x80\x04N."), Reason.MALFORMED, ALL),
    "an archive": (with_bytes(archive()), Reason.MALFORMED, ALL),
    "a broken archive": (with_bytes(b"PK\x03\x04 no more"), Reason.MALFORMED, ALL),
    "more than there is": (with_bytes(shape("(1, 6)")), Reason.MALFORMED, ALL),
    "a shape of terabytes": (with_bytes(shape("(1000000, 1000000)")), Reason.MALFORMED, ALL),
    "a negative shape": (with_bytes(shape("(-1, 6)")), Reason.MALFORMED, ALL),
    "a shape to parse": (with_bytes(shape("-" * 3000 + "1")), Reason.MALFORMED, ALL),
    "another kind": (with_bytes(b"", "torch.tensor"), Reason.MALFORMED, ALL),
    "an exception": (raising, Reason.CLIENT_ERROR, ALL),
    "an exit": (leaving, Reason.CLIENT_ERROR, ALL),
    "a dead process": (died, Reason.CLIENT_ERROR, ALL),
}
"""Faults of a reply: what is sent instead, the reason to be given, where it is a fault."""

HARMLESS: dict[str, tuple[Tamper, int]] = {
    "denormal": (with_gradients(lambda g: np.full_like(g, 5e-324)), 0),
    "minus zero": (with_gradients(lambda g: g * -0.0), 0),
    "columns first": (with_gradients(np.asfortranarray), 0),
    "no metrics": (with_metrics(), 0),
    "NaN metrics": (with_metrics(worst_residual=math.nan, poisoned_residual=math.nan), 2),
    "infinite metrics": (with_metrics(worst_residual=math.inf, poisoned_labels=math.inf), 2),
    "negative metrics": (with_metrics(worst_residual=-1.0, unconverged=-3), 2),
    "enormous metrics": (with_metrics(worst_residual=1e300, unconverged=2**62), 2),
    "lists for numbers": (with_metrics(worst_residual=[1.0], unconverged=[1]), 2),
    "a fraction of a count": (with_metrics(unconverged=0.5), 1),
    "unknown metrics": (with_metrics(rank=1), 1),
    "another's accuracy": (with_metrics(accuracy_users=[4], accuracies=[0.0]), 1),
    "accuracy above 1": (with_metrics(accuracy_users=[1], accuracies=[7.0]), 2),
    "accuracies of nobody": (with_metrics(accuracies=[0.5, 0.5]), 2),
}
"""What is valid as a report, and how many entries of its metrics are to be left out."""


def late(message: Message, reply: Message, held: list[Message]) -> list[Message]:
    held.append(reply)
    return []


def twice(message: Message, reply: Message, held: list[Message]) -> list[Message]:
    return [reply, copy.deepcopy(reply)]


def silent(message: Message, reply: Message, held: list[Message]) -> list[Message]:
    return []


def good_then_bad(message: Message, reply: Message, held: list[Message]) -> list[Message]:
    return [reply, nothing(message, copy.deepcopy(reply))]


def to_nobody(message: Message, reply: Message, held: list[Message]) -> list[Message]:
    lost = copy.deepcopy(reply)
    lost.metadata.__dict__["_reply_to_message_id"] = "nobody's"
    return [reply, lost]


Arrival = Callable[[Message, Message, list[Message]], list[Message]]
"""From a message, its reply and what is held back until the next round, to what arrives."""

ARRIVALS: dict[str, tuple[Arrival, Reason | None, dict[str, int]]] = {
    "late": (late, Reason.NO_REPLY, {"stray": 1}),
    "lost": (silent, Reason.NO_REPLY, {}),
    "duplicated": (twice, None, {"duplicate": 1}),
    "changed its mind": (good_then_bad, None, {"duplicate": 1}),
    "a reply to nothing": (to_nobody, None, {"stray": 1}),
}
"""How a good reply may arrive: the reason if it costs its user the round, and what is counted."""
