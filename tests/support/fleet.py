"""A participant that speaks Flower's fleet API itself: it says what it likes, in any node's name.

Its requests are signed with its own key, as the SuperLink asks; what they carry is its own affair.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_MAX_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from pfl_flower.client_app import app as client_app
from pfl_flower.run.keys import Scalar
from pfl_flower.transport.flower_internals import assembled, identify_process, number, twin
from pfl_flower.transport.records import CONFIG

MICROSECOND = 1e-6


class Participant:
    """A registered key and what can be done with it."""

    def __init__(self, address: str, certificate: Path, key: Path) -> None:
        private = load_ssh_private_key(key.read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        public = private.public_key()
        self.client = FleetHttpClient.from_server_address(
            address,
            False,
            str(certificate),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(private, public),
            ],
        )
        identify_process(1)
        told = self.client.ActivateNode(
            ActivateNodeRequest(
                public_key=public_key_to_bytes(public), heartbeat_interval=HEARTBEAT_MAX_INTERVAL
            )
        )
        self.node = Node(node_id=told.node_id)
        self.state = RecordDict()

    def pull(self) -> Message | None:
        """Return the next question, None if there is none."""
        came = self.client.PullMessages(PullMessagesRequest(node=self.node))
        if not came.messages_list:
            return None
        head, tree = message_from_proto(came.messages_list[0]), came.message_object_trees[0]
        run, identifier = head.metadata.run_id, head.metadata.message_id
        get = make_pull_object_fn_protobuf(self.client.PullObject, self.node, run)
        contents = pull_objects([one.object_id for one in iterate_object_tree(tree)], get)
        self.client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.node, run_id=run, message_object_id=identifier)
        )
        message = inflate_object_from_contents(identifier, contents)
        assert isinstance(message, Message)
        return number(message, identifier)

    def answer(self, question: Message, run_config: dict[str, Scalar]) -> RecordDict:
        """Return what the project's own ClientApp has to say."""
        context = Context(
            run_id=question.metadata.run_id,
            node_id=self.node.node_id,
            node_config={},
            state=self.state,
            run_config=run_config,
        )
        return client_app(question, context).content

    def push(self, question: Message, said: RecordDict | Error, *, name: str = "") -> None:
        """Send a reply to a question, to anybody's, in the name of whom it asks.

        ``name`` is the question's id where it is not its own.
        """
        asked = number(twin(question), name or question.metadata.message_id)
        reply = Message(said, reply_to=asked)
        number(reply, reply.object_id)
        objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
        bare = remove_content_from_message(reply) if reply.has_content() else reply
        told = self.client.PushMessages(
            PushMessagesRequest(
                node=self.node,
                messages_list=[message_to_proto(bare)],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.1],
            )
        )
        put = make_push_object_fn_protobuf(
            self.client.PushObject, self.node, question.metadata.run_id, told.session_id
        )
        push_objects(objects, put, object_ids_to_push=set(told.objects_to_push))


def guesses(own: Message, node: int, users: bytes, around: int) -> Iterable[Message]:
    """Yield what the server may have asked another node, right before or after it asked this one.

    Everything is known or guessed: rho is everybody's, the users are those of the other node, and
    the moment is a microsecond nearby. What the server has besides, nobody can know.
    """
    config = dict(own.content.config_records[CONFIG])
    guessed = {**config, "users": users}
    for step in range(1, around):
        for later in (step, -step):
            content = RecordDict({**own.content, CONFIG: ConfigRecord(guessed)})
            metadata = twin(own.metadata)
            moment = round(own.metadata.created_at / MICROSECOND) + later
            metadata.__dict__.update(
                _dst_node_id=node, _created_at=moment / 1e6, _message_id="", _delivered_at=""
            )
            made = assembled(own, metadata, content=content)
            made.__dict__.pop("_object_id", None)
            yield number(made, made.object_id)
