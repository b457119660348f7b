"""Replies that are too large, or none at all, become errors, and what came beside them stays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
)
from flwr.superlink.grid.http_grid import HttpGrid

from pfl_flower.transport import pulling
from pfl_flower.transport.inprocess import RUN_ID, InProcessGrid
from pfl_flower.transport.pulling import FEW_OBJECTS, PIECE_BYTES, TOO_LARGE, pull
from tests.support.runs import client_app

LIMIT = 10_000


@dataclass
class Reply:
    """What a node has registered with the SuperLink, and sent."""

    message: Message
    objects: dict[str, bytes]
    tree: ObjectTree

    @property
    def identifier(self) -> str:
        return self.tree.object_id


@dataclass
class Link:
    """What a grid asks of a SuperLink."""

    replies: list[Reply]
    pulled: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def PullMessages(self, request: Any) -> Any:
        asked = [one for one in self.replies if _question(one) in request.message_ids]
        told = []
        for one in asked:
            proto = message_to_proto(remove_content_from_message(one.message))
            proto.metadata.message_id = one.identifier
            told.append(proto)
        trees = [one.tree for one in asked]
        return SimpleNamespace(messages_list=told, message_object_trees=trees)

    def PullObject(self, request: Any) -> PullObjectResponse:
        self.pulled.append(request.object_id)
        for one in self.replies:
            if request.object_id in one.objects:
                content = one.objects[request.object_id]
                return PullObjectResponse(
                    object_found=True, object_available=True, object_content=content
                )
        return PullObjectResponse(object_found=False)

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.removed.append(request.message_object_id)


class Grid(HttpGrid):
    """Flower's own, with a SuperLink that stands beside it."""

    def __init__(self, link: Link) -> None:
        super().__init__(token="token")
        self._client = link  # type: ignore[assignment]
        self._run = InProcessGrid(client_app, nodes=1, run_config={}).run


def _question(one: Reply) -> str:
    return one.message.metadata.reply_to_message_id


def question(name: str) -> Message:
    message = Message(RecordDict(), 1, MessageType.TRAIN)
    message.metadata.__dict__["_message_id"] = name
    return message


def reply(name: str, content: RecordDict) -> Reply:
    message = Message(content, reply_to=question(name))
    objects = {key: one.deflate() for key, one in get_all_nested_objects(message).items()}
    return Reply(message, objects, get_object_tree(message))


def numbers(count: int) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"gradients": Array(np.arange(float(count)))})})


def words(count: int) -> RecordDict:
    return RecordDict({"config": ConfigRecord({"story": "x" * count})})


def swapped(one: Reply, kind: str, change: Callable[[bytes], bytes]) -> Reply:
    """Change the object of a kind, under the name that its content has, up to the root."""
    names: dict[str, str] = {}
    objects: dict[str, bytes] = {}
    # From the leaves to the root, as the tree is walked.
    for node in iterate_object_tree(one.tree):
        content = one.objects[node.object_id]
        for old, new in names.items():
            content = content.replace(old.encode(), new.encode())
        if content.startswith(f"{kind} ".encode()):
            content = change(content)
        names[node.object_id] = get_object_id(content)
        objects[names[node.object_id]] = content

    def renamed(tree: ObjectTree) -> ObjectTree:
        return ObjectTree(
            object_id=names[tree.object_id], children=[renamed(child) for child in tree.children]
        )

    return Reply(one.message, objects, renamed(one.tree))


def body(content: bytes, new: Callable[[Any], Any]) -> bytes:
    """Return an object with another JSON body."""
    head, _, old = content.partition(b"\x00")
    made = json.dumps(new(json.loads(old))).encode()
    words = head.decode().rsplit(" ", 1)
    return f"{words[0]} {len(made)}".encode() + b"\x00" + made


def repeated(content: bytes) -> bytes:
    """Name the one piece of an array a million times: 8 GB of one page."""
    return body(content, lambda told: {**told, "arraychunk_ids": [0] * 1_000_000})


def deep(one: Reply) -> Reply:
    """Nest the tree, not the objects."""
    tree = one.tree
    for number in range(60):
        name = hashlib.sha256(str(number).encode()).hexdigest()
        tree = ObjectTree(object_id=name, children=[tree])
    return Reply(one.message, one.objects, tree)


def wide(one: Reply) -> Reply:
    """Register objects of which none is ever sent."""
    names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(1000)]
    tree = ObjectTree(object_id=one.identifier, children=[*one.tree.children])
    tree.children.extend(ObjectTree(object_id=name) for name in names)
    return Reply(one.message, one.objects, tree)


def without(one: Reply, kind: str) -> Reply:
    kept = {key: value for key, value in one.objects.items() if not value.startswith(kind.encode())}
    return Reply(one.message, kept, one.tree)


def headless(one: Reply) -> Reply:
    """Name a record as the reply's root."""
    records = one.tree.children[0]
    return Reply(one.message, one.objects, records)


def hidden(one: Reply) -> Reply:
    """Leave the leaves out of the tree, which the contents name."""
    tree = ObjectTree(object_id=one.identifier, children=[])
    return Reply(one.message, one.objects, tree)


UNAVAILABLE = "none"
HOSTILE: dict[str, tuple[Callable[[], Reply], str]] = {
    "too many numbers": (lambda: reply("bad", numbers(10_000)), "more than its question allows"),
    "a long story": (lambda: reply("bad", words(100_000)), "more than its question allows"),
    "many pieces": (
        lambda: reply("bad", numbers(20 * PIECE_BYTES // 8)),
        f"objects: expected at most {FEW_OBJECTS + 1}",
    ),
    "a piece many times": (
        lambda: swapped(reply("bad", numbers(100)), "Array", repeated),
        "more than its question allows",
    ),
    "many objects": (lambda: wide(reply("bad", numbers(4))), "1005 objects: expected at most"),
    "a deep tree": (lambda: deep(reply("bad", numbers(4))), "objects: expected at most"),
    "a piece that is not there": (
        lambda: swapped(
            reply("bad", numbers(4)),
            "Array",
            lambda content: body(content, lambda told: {**told, "arraychunk_ids": [7]}),
        ),
        UNAVAILABLE,
    ),
    "pieces in words": (
        lambda: swapped(
            reply("bad", numbers(4)),
            "Array",
            lambda content: body(content, lambda told: {**told, "arraychunk_ids": "0"}),
        ),
        UNAVAILABLE,
    ),
    "an array of nothing": (
        lambda: swapped(
            reply("bad", numbers(4)), "Array", lambda content: body(content, lambda told: [])
        ),
        UNAVAILABLE,
    ),
    "an object that was not sent": (
        lambda: without(reply("bad", numbers(4)), "ArrayChunk"),
        UNAVAILABLE,
    ),
    "another kind of object": (
        lambda: swapped(
            reply("bad", numbers(4)),
            "ArrayRecord",
            lambda content: content.replace(b"ArrayRecord", b"RecordDict", 1),
        ),
        UNAVAILABLE,
    ),
    "noise": (
        lambda: swapped(reply("bad", numbers(4)), "ArrayRecord", lambda content: b"\xff" * 99),
        UNAVAILABLE,
    ),
    "no message": (lambda: headless(reply("bad", numbers(4))), UNAVAILABLE),
    "objects beside the tree": (lambda: hidden(reply("bad", numbers(4))), UNAVAILABLE),
}


@pytest.fixture
def grid() -> Iterator[Callable[..., tuple[Grid, Link]]]:
    InProcessGrid(client_app, nodes=1, run_config={})

    def made(*replies: Reply) -> tuple[Grid, Link]:
        link = Link(list(replies))
        return Grid(link), link

    yield made


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_reply_is_an_error_and_the_others_are_heard(name: str, grid: Any) -> None:
    make, said = HOSTILE[name]
    InProcessGrid(client_app, nodes=1, run_config={})
    first, bad, last = reply("first", numbers(50)), make(), reply("last", words(50))
    made, link = grid(first, bad, last)
    limits = dict.fromkeys(("first", "bad", "last"), LIMIT)
    found = pull(made, ["first", "bad", "last"], limits)
    assert [one.metadata.reply_to_message_id for one in found] == ["first", "bad", "last"]
    assert [one.has_error() for one in found] == [False, True, False]
    error = found[1].error
    if said is UNAVAILABLE:
        assert error.code != TOO_LARGE
    else:
        assert error.code == TOO_LARGE and said in error.reason
    assert error.reason.isprintable()
    assert link.removed == [first.identifier, bad.identifier, last.identifier]
    if "objects" in said:
        assert not set(link.pulled) & (bad.objects.keys() - first.objects.keys())
    array = found[0].content.array_records["arrays"]["gradients"]
    assert np.array_equal(array.numpy(), np.arange(50.0))
    assert found[2].content.config_records["config"]["story"] == "x" * 50
    assert found[0].metadata.message_id == first.identifier


@pytest.mark.parametrize("count", [0, 1, 1000, PIECE_BYTES // 8, 3 * PIECE_BYTES // 8 + 5])
def test_what_a_question_allows_comes_as_flower_brings_it(count: int, grid: Any) -> None:
    one = reply("asked", numbers(count))
    made, _ = grid(one)
    (own,) = pull(made, ["asked"], {"asked": 8 * count + 4096})
    (flowers,) = made.pull_messages(["asked"])
    assert own.content == flowers.content
    assert own.metadata.__dict__ == flowers.metadata.__dict__


def test_what_answers_nothing_may_say_little(grid: Any) -> None:
    made, _ = grid(reply("stray", words(100)), reply("lie", words(50_000)))
    found = pull(made, ["stray", "lie"], {})
    assert [one.has_error() for one in found] == [False, True]


def test_a_tree_that_names_an_object_again_pulls_it_once(grid: Any) -> None:
    one = reply("asked", numbers(4))
    one.tree.children.extend([one.tree.children[0]] * 200)
    made, link = grid(one)
    (found,) = pull(made, ["asked"], {"asked": LIMIT})
    assert not found.has_error()
    assert len(link.pulled) == len(set(link.pulled))


def test_a_broken_line_is_nobodys_reply(grid: Any) -> None:
    """What the SuperLink fails to answer is the run's matter."""
    made, link = grid(reply("asked", numbers(4)))

    def broken(request: Any) -> None:
        raise ConnectionError("gone")

    link.PullObject = broken
    with pytest.raises(ConnectionError):
        pull(made, ["asked"], {"asked": LIMIT})


def test_nodes_of_this_process_say_what_they_like() -> None:
    made = InProcessGrid(lambda message, _: Message(words(10**5), reply_to=message),  # type: ignore[arg-type]
                         nodes=1, run_config={})  # fmt: skip
    (name,) = made.push_messages([Message(RecordDict(), 1000, MessageType.TRAIN)])
    assert [one.has_error() for one in pull(made, [name], {})] == [False]
    assert made.run.run_id == RUN_ID


def test_pieces_are_as_large_as_flowers() -> None:
    one = reply("asked", numbers(2 * PIECE_BYTES // 8))
    assert sum(content.startswith(b"ArrayChunk") for content in one.objects.values()) == 3
    assert pulling.TOO_LARGE > 100
