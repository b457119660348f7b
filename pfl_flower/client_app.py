"""The Flower ClientApp: one node that acts for the users the server assigns to it."""

from __future__ import annotations

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.answers import answering, once
from clients.node import Node
from pfl_flower.transport.broadcasts import unpack_broadcast
from pfl_flower.transport.node_metrics import METRICS
from pfl_flower.transport.questions import asked_rho, pack_introduction, unpack_question
from pfl_flower.transport.training_replies import pack_report

app = ClientApp()


@app.query()
@answering
def introduce(message: Message, context: Context) -> RecordDict:
    """Tell the server which role this node was started with, and whose memory it has kept."""
    round, _ = unpack_question(message.content)
    return pack_introduction(Node.of(context).introduction(round))


@app.train()
@answering
@once
def train(message: Message, context: Context) -> RecordDict:
    """Answer a broadcast with one gradient row per assigned user."""
    node = Node.of(context)
    return pack_report(*node.report(unpack_broadcast(message.content, node.problem.device)))


@app.evaluate()
@answering
def evaluate(message: Message, context: Context) -> RecordDict:
    """Answer with how good the node's local models are, and how well its users are served."""
    _, users = unpack_question(message.content)
    said = Node.of(context).evaluation(users, asked_rho(message.content))
    return RecordDict({METRICS: said.pack()})
