"""Flower's Grid without Ray or SuperLink: any number of virtual nodes in one process.

The same ServerApp and ClientApp objects run on it. Messages and states are copied at every
boundary, all but the bytes of their arrays, which nobody can change: so a node can mutate neither
the server's memory nor another node's. A client's exception becomes an error reply with the code
that Flower's simulation gives it, and its change of state is dropped.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping
from logging import ERROR

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from pfl_flower.run.keys import Scalar
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.world import out_of_memory
from pfl_flower.transport.flower_internals import (
    CLIENT_APP_RAISED,
    NODE_UNAVAILABLE,
    SUPERLINK_NODE_ID,
    Run,
    empty_run,
    identify_process,
    log,
    number,
)
from pfl_flower.transport.wire import copied, copied_context

RUN_ID = 1
FIRST_NODE_ID = 1000


class InProcessGrid(Grid):
    """Delivers every message at once, to a ClientApp in this process.

    Parameters
    ----------
    client_app : ClientApp
        What all nodes run.
    nodes : int
        Number of virtual nodes; their ids count up from 1000.
    run_config : mapping
        The run configuration every node sees.
    node_configs : mapping, optional
        Extra node configuration by position, such as ``{0: {"role": "strategic"}}``.
    """

    def __init__(
        self,
        client_app: ClientApp,
        *,
        nodes: int,
        run_config: Mapping[str, Scalar],
        node_configs: Mapping[int, Mapping[str, Scalar]] | None = None,
    ) -> None:
        if nodes < 1:
            raise ValueError(f"nodes = {nodes}: expected at least 1")
        identify_process(RUN_ID)
        self.client_app = client_app
        self._run = empty_run(RUN_ID)
        self._mailbox: dict[str, Message] = {}
        self._numbers = itertools.count(1)
        self.contexts: dict[int, Context] = {}
        for position in range(nodes):
            own = dict((node_configs or {}).get(position, {}))
            self.contexts[FIRST_NODE_ID + position] = Context(
                run_id=RUN_ID,
                node_id=FIRST_NODE_ID + position,
                node_config={"partition-id": position, "num-partitions": nodes, **own},
                state=RecordDict(),
                run_config=dict(run_config),
            )

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message from the server."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages and keep the replies until they are pulled."""
        identifiers = []
        for message in messages:
            self._sign(message)
            identifiers.append(message.metadata.message_id)
            self._mailbox[message.metadata.message_id] = self._deliver(message)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages, once."""
        kept = [self._mailbox.pop(identifier, None) for identifier in message_ids]
        return [reply for reply in kept if reply is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Return the replies of the nodes that took at most ``timeout`` seconds each."""
        replies: list[Message] = []
        for message in messages:
            began = time.monotonic()
            replies += self.pull_messages(self.push_messages([message]))
            if timeout is not None and time.monotonic() - began > timeout:
                replies.pop()
        return replies

    def _deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        delivered = copied(message)
        try:
            if node not in self.contexts:
                error = Error(NODE_UNAVAILABLE, f"node {node} is not connected")
                return self._sign(Message(error, reply_to=delivered))
            context = copied_context(self.contexts[node])
            reply = copied(self.client_app(delivered, context))
            self.contexts[node] = context
        except (Exception, SystemExit) as error:
            if out_of_memory(error):
                raise  # this process's, which is the server's too: no reply would be honest
            reason = one_line(error)
            log(ERROR, "node %d: %s", node, reason)
            failed = Error(CLIENT_APP_RAISED, reason)
            reply = Message(failed, reply_to=copied(message))
        return self._sign(reply)

    def _sign(self, message: Message) -> Message:
        return number(message, f"message-{next(self._numbers)}")


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    nodes: int,
    run_config: Mapping[str, Scalar],
    node_configs: Mapping[int, Mapping[str, Scalar]] | None = None,
) -> InProcessGrid:
    """Run both apps to the end in this process; return the grid with the nodes' final states."""
    grid = InProcessGrid(client_app, nodes=nodes, run_config=run_config, node_configs=node_configs)
    context = Context(
        run_id=RUN_ID,
        node_id=SUPERLINK_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config),
    )
    server_app(grid, context)
    return grid
