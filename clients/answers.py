"""How a node answers a question: with its secret, whatever happens, and the same when asked again.

The server repeats a question whose answer somebody else has silenced, and a node that was busy
with the first one may have finished it, and gone a step further, by then. So a node keeps its last
answer to a broadcast beside its memory, and returns it when the same broadcast comes again: nothing
is computed twice, no optimiser or attack takes a step more.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from logging import DEBUG, ERROR
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from pfl_flower.support.errors import DeviceError
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.world import out_of_memory
from pfl_flower.transport.flower_internals import log, put
from pfl_flower.transport.nonces import nonce_of, pack_failure, signed, words
from pfl_flower.transport.wire import copied_records, filled, find

ANSWER = "answer-"
"""Begins the names of the records of a state in which the last answer is; no disk keeps them."""
QUESTION = f"{ANSWER}to"

Handler = Callable[[Message, Context], RecordDict]


def answering(handler: Handler) -> Callable[[Message, Context], Message]:
    """Return what Flower calls: the handler, and for its exceptions an answer that says why.

    Flower's own error replies could be anybody's. An exception leaves the state as it was before.
    """

    @functools.wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        before = dict(context.state)
        try:
            content = handler(message, context)
        except (Exception, SystemExit) as error:
            _put_back(context.state, before)
            if out_of_memory(error):
                raise  # of a process that is the server's too, it is the run's failure
            lacking = isinstance(error, DeviceError)
            reason = str(error) if lacking else one_line(error)
            log(ERROR, "node %d: %s", context.node_id, reason)
            log(DEBUG, "%s", traceback.format_exc())
            content = pack_failure(reason, no_device=lacking)
        return Message(signed(content, nonce_of(message.content)), reply_to=message)

    return answer


def once(handler: Handler) -> Handler:
    """Return a handler that answers a question that comes again as it did before."""

    @functools.wraps(handler)
    def answer(message: Message, context: Context) -> RecordDict:
        asked, state = filled(ConfigRecord, words(message.content)), context.state
        if find(state, QUESTION, ConfigRecord) == asked:
            names = [name for name in state if name.startswith(ANSWER) and name != QUESTION]
            return RecordDict({name.removeprefix(ANSWER): state[name] for name in names})
        content = handler(message, context)
        for name in [name for name in state if name.startswith(ANSWER)]:
            del state[name]
        for name, record in copied_records(content).items():
            put(state, ANSWER + name, record)
        put(state, QUESTION, asked)
        return content

    return answer


def _put_back(state: RecordDict, before: dict[str, Any]) -> None:
    """Take back what was set in a state; its records are replaced, not changed."""
    state.clear()
    state.update(before)
