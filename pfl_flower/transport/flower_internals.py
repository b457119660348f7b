"""Flower's inside: all that this project relies on and that Flower does not promise.

Written for flwr 1.41 and 1.42, and, with ``pulling``, all that looks behind ``flwr.app``,
``flwr.clientapp`` and ``flwr.serverapp``: no other module imports more of Flower, and no other
writes into the ``__dict__`` of one of its objects. Every name here has a test of its own in
``tests/transport/test_flower_internals.py``; when a new version of Flower turns one red, this is
the place to mend.

Why at all: a ``Grid`` numbers messages and names the process that makes them, for which Flower has
no public way; and Flower looks at every entry of a record when it is set, which this project's own
entries need not pay for. Made and copied without, as ``wire`` does, messages cost half as much, and
so do rounds with little mathematics.
"""

from __future__ import annotations

from logging import LogRecord, getLogger
from typing import Any, TypeVar

from flwr.app import Array, Error, Message, Metadata, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.logger import log as flowers_log
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from pfl_flower.support.errors import REFUSALS
from pfl_flower.support.foreign_text import one_line

__all__ = [
    "APP_ERRORS",
    "CLIENT_APP_RAISED",
    "NODE_UNAVAILABLE",
    "SUPERLINK_NODE_ID",
    "Run",
    "array_of",
    "assembled",
    "empty_run",
    "entries",
    "holding",
    "identify_process",
    "log",
    "log_refusals_once",
    "new_array",
    "number",
    "put",
    "twin",
]

NODE_UNAVAILABLE: int = ErrorCode.NODE_UNAVAILABLE
"""The code of the error reply on behalf of a node that is gone."""
APP_ERRORS = frozenset(
    {
        ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
        ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
        ErrorCode.MOD_FAILED_PRECONDITION,
        ErrorCode.INVALID_FAB,
    }
)
"""The codes of error replies that another try does not mend."""
CLIENT_APP_RAISED: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
"""The code of the error reply of a node whose ClientApp raised."""

LONGEST_LINE = 2000
"""Characters of a line in the log."""

Object = TypeVar("Object")
Held = TypeVar("Held", bound=Array)


def log(level: int, message: str, *values: object) -> None:
    """Log one line as Flower does, in which every character shows, whoever wrote the values."""
    flowers_log(level, "%s", one_line(message % values if values else message, LONGEST_LINE))


def log_refusals_once() -> None:
    """Keep Flower from logging the traceback of a refusal, which is one line and was logged.

    Flower's processes log what a ServerApp raises, with its traceback, and then end the run as
    failed: the exception itself is what tells them to.
    """
    getLogger("flwr").addFilter(_is_news)


def _is_news(record: LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], REFUSALS)


def identify_process(run: int) -> None:
    """Give this process the identity that ``Message`` asks for, the server's, unless it has one."""
    try:
        _ = TaskIdentity.run_id
    except RuntimeError:
        TaskIdentity.run_id = run
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        TaskIdentity.task_id = run


def empty_run(run: int) -> Run:
    """Return what a ``Grid`` knows of a run that no SuperLink keeps."""
    return Run.create_empty(run)


def number(message: Message, identifier: str) -> Message:
    """Give a message the id by which its reply names it, as Flower's grids do."""
    message.metadata.__dict__["_message_id"] = identifier
    return message


def twin(thing: Object) -> Object:
    """Return a shallow copy, as ``copy.copy`` does, at a tenth of its cost."""
    copied = object.__new__(type(thing))
    copied.__dict__ = {**thing.__dict__}
    return copied


def entries(record: object) -> dict[str, Any]:
    """Return the entries of a record, the dict itself: reading it looks at none of them."""
    found: dict[str, Any] = record.__dict__["_data"]
    return found


def put(record: object, name: str, entry: object) -> None:
    """Set an entry of a record that needs no check."""
    entries(record)[name] = entry


def holding(model: Object, values: dict[str, Any]) -> Object:
    """Return a record that differs from the model in its entries alone, which need no check."""
    record = object.__new__(type(model))
    own = {**model.__dict__, "_data": values}
    own.pop("_object_id", None)  # Flower's hash of the model's entries, which was asked
    record.__dict__ = own
    return record


def assembled(
    message: Message,
    metadata: Metadata,
    *,
    content: RecordDict | None = None,
    error: Error | None = None,
) -> Message:
    """Return a message of the same kind with other metadata and another content or error."""
    made = twin(message)
    made.__dict__.update(_metadata=metadata, _content=content, _error=error)
    return made


def new_array(dtype: str, shape: tuple[int, ...], data: bytes) -> Array:
    """Return an array of numpy's bytes, without trying which of its signatures is meant."""
    return array_of(Array, dtype, shape, data=data)


def array_of(kind: type[Held], dtype: str, shape: tuple[int, ...], **more: object) -> Held:
    """Return an array of this kind, with what it has besides Flower's own fields."""
    array = kind.__new__(kind)
    array.__dict__.update(dtype=dtype, shape=shape, stype="numpy.ndarray", **more)
    return array
