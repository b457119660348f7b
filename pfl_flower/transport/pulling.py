"""Pulling replies from a SuperLink, no more of each than its question allows.

Flower's grid pulls whatever a reply's sender has registered, and then makes a message of it. A
reply travels as a tree of objects, arrays in pieces of some MiB, so no limit on a request bounds
it; the description of an array may name one piece a million times; and what cannot be made a
message of raises, with which the run and the replies that were pulled beside it are lost. Here
objects are counted before any is pulled, their bytes while they are, and the pieces of arrays
before they are joined. A reply that is too large, or is none, becomes an error reply, and what the
SuperLink keeps of it is removed at once.

Written for flwr 1.41 and 1.42: the second module, after ``flower_internals``, that looks behind
what Flower promises.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE, ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.superlink.grid.http_grid import HttpGrid

from pfl_flower.support.foreign_text import one_line

PIECE_BYTES: int = FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
"""Of an array, in one object; 5 MiB."""
FEW_OBJECTS = 16
"""A reply without pieces of arrays: the message, its content, its records, an array."""
OBJECT_BYTES = 1024
"""Room in an object besides its content: its kind, and the names and lengths of others."""
SPELLING = 2
"""How many times longer a number may be as it travels than in memory."""
STRAY_BYTES = 4096
"""Of a message that answers no question."""
TOO_LARGE = 1001
"""Code of the error reply in place of a reply that is too large; Flower's own are far below."""


class _TooLargeError(ValueError):
    """A reply is larger than its question allows."""


@dataclass
class _Budget:
    """What one reply may still take."""

    left: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, size: int) -> None:
        with self.lock:
            self.left -= size
            if self.left < 0:
                raise _TooLargeError(f"{-self.left:,} bytes more than its question allows")


def is_site(grid: Grid) -> bool:
    """Whether replies come from machines of others, and not from the operator's own nodes."""
    return isinstance(grid, HttpGrid)


def pull(grid: Grid, identifiers: Iterable[str], limits: Mapping[str, int]) -> list[Message]:
    """Return the replies that have come to some messages.

    Parameters
    ----------
    grid : Grid
        Those of a simulation and of this process carry what the operator's own nodes say, which is
        in memory already: there nothing is limited.
    identifiers : iterable of str
        The messages' ids.
    limits : mapping
        The most bytes of a reply's content, by the id of the message that it answers.

    Returns
    -------
    list of Message
        Error replies stand for those that were larger, were not whole, or could not be read.
    """
    if not isinstance(grid, HttpGrid):
        return list(grid.pull_messages(identifiers))
    client = grid._runtime_client
    came = client.PullMessages(PullAppMessagesRequest(message_ids=list(identifiers)))
    found = []
    for told, tree in zip(came.messages_list, came.message_object_trees, strict=True):
        question = told.metadata.reply_to_message_id
        limit = limits.get(question, STRAY_BYTES)
        try:
            message = _pulled(grid, tree, told.metadata.message_id, limit)
        except _TooLargeError as error:
            message = _in_place(grid, question, TOO_LARGE, str(error))
        except ObjectPullError as error:
            message = _in_place(grid, question, ErrorCode.MESSAGE_UNAVAILABLE, one_line(error))
        finally:
            client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=grid.node,
                    run_id=grid.run.run_id,
                    message_object_id=told.metadata.message_id,
                )
            )
        found.append(message)
    return found


def _pulled(grid: HttpGrid, tree: ObjectTree, identifier: str, limit: int) -> Message:
    names = list(dict.fromkeys(one.object_id for one in iterate_object_tree(tree)))
    most = FEW_OBJECTS + -(-limit // PIECE_BYTES)
    if len(names) > most:
        raise _TooLargeError(f"{len(names)} objects: expected at most {most}")
    budget = _Budget(SPELLING * limit + OBJECT_BYTES * most)
    one = make_pull_object_fn_protobuf(
        pull_object_protobuf=grid._runtime_client.PullObject,
        node=grid.node,
        run_id=grid.run.run_id,
    )
    contents = pull_objects(names, _counted(one, budget))
    try:
        check_pieces(contents, SPELLING * limit)
        message = inflate_object_from_contents(identifier, contents)
        if not isinstance(message, Message):
            raise TypeError(f"{type(message).__name__}: expected a Message")
    except _TooLargeError:
        raise
    except Exception as error:  # of hostile bytes Flower makes what it likes
        raise ObjectPullError(identifier, one_line(error)) from None
    message.metadata.__dict__["_message_id"] = identifier
    return message


def _counted(one: Callable[[str], bytes], budget: _Budget) -> Callable[[str], bytes]:
    def counted(name: str) -> bytes:
        content = one(name)
        budget.take(len(content))
        return content

    return counted


def check_pieces(contents: Mapping[str, bytes], limit: int) -> None:
    """Check that arrays, their pieces joined as they say, have at most ``limit`` bytes in all.

    Raises
    ------
    ValueError
        If they have more, or an object is not of Flower's form.
    """
    budget = _Budget(limit)
    for content in contents.values():
        kind, children, size = get_object_head_values_from_object_content(content)
        if kind == "Array":
            pieces = json.loads(content[len(content) - size :])["arraychunk_ids"]
            for piece in pieces:
                budget.take(len(contents[children[piece]]))


def _in_place(grid: HttpGrid, question: str, code: int, reason: str) -> Message:
    """Return an error reply to a question, as Flower's grid makes one."""
    here = grid.node.node_id
    metadata = Metadata(
        run_id=grid.run.run_id,
        message_id="",
        src_node_id=here,
        dst_node_id=here,
        message_type=SYSTEM_MESSAGE_TYPE,
        group_id="",
        ttl=0,
        reply_to_message_id=question,
        created_at=now().timestamp(),
    )
    return make_message(metadata=metadata, error=Error(code=code, reason=reason))
