"""The Flower ClientApp: one node that acts for the users the server assigns to it."""

from __future__ import annotations

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.node import Node
from pfl_flower.transport.broadcasts import unpack_broadcast
from pfl_flower.transport.node_metrics import METRICS
from pfl_flower.transport.questions import asked_rho, pack_introduction, unpack_question
from pfl_flower.transport.training_replies import pack_report

app = ClientApp()


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Tell the server which role this node was started with, and whose memory it has kept."""
    round, _ = unpack_question(message.content)
    said = Node.of(context).introduction(round)
    return Message(pack_introduction(said), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a broadcast with one gradient row per assigned user."""
    node = Node.of(context)
    report, metrics = node.report(unpack_broadcast(message.content, node.problem.device))
    return Message(pack_report(report, metrics), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer with how good the node's local models are, and how well its users are served."""
    _, users = unpack_question(message.content)
    said = Node.of(context).evaluation(users, asked_rho(message.content))
    return Message(RecordDict({METRICS: said.pack()}), reply_to=message)
