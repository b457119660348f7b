"""The Flower ClientApp: one node that acts for the users the server assigns to it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.base import Client
from clients.honest import HonestClient
from clients.memory import Memory
from clients.poisoned import PoisonedClient
from clients.strategic import StrategicClient
from pfl_flower.aggregation.reports import Report
from pfl_flower.aggregation.rows import Rows
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.run.config import parse_config
from pfl_flower.run.keys import Scalar
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.support.errors import ConfigError
from pfl_flower.transport.broadcasts import unpack_broadcast
from pfl_flower.transport.node_metrics import METRICS, NodeMetrics
from pfl_flower.transport.questions import ROLES, Introduction, pack_introduction, unpack_question
from pfl_flower.transport.training_replies import pack_report

app = ClientApp()


def node_role(context: Context) -> str:
    """Return a node's own role: ``strategic``, ``honest``, or ``auto`` for the run's choice.

    Raises
    ------
    ConfigError
        If ``--node-config`` names another role.
    """
    role = str(context.node_config.get("role", "auto"))
    if role not in ROLES:
        raise ConfigError(f"role = {role}: expected {', '.join(ROLES)}")
    return role


def node_memory(problem: Problem, context: Context) -> Memory:
    """Return the memory in the node's own ``state-dir``, the run's, or the folder of the run."""
    config = problem.config
    chosen = str(context.node_config.get("state-dir", config.state_dir))
    base = Path(chosen).expanduser() / config.name if chosen else config.folder() / "state"
    return Memory(base.absolute())


def node_clients(
    problem: Problem, users: tuple[int, ...], role: str, state: RecordDict
) -> list[Client]:
    """Return the clients that act for a node's users; the node's own role wins over the run's."""
    chosen = problem.config.strategic() if role == "auto" else frozenset()
    strategic = tuple(user for user in users if user in chosen or role == "strategic")
    honest = users
    if strategic:
        apart = frozenset(strategic)
        honest = tuple(user for user in users if user not in apart)
    clients: list[Client] = []
    if honest:
        clients.append(HonestClient(problem, honest, state))
    if strategic:
        gives = ATTACKS.row(problem.config.attack).gives
        kind = PoisonedClient if gives == "data" else StrategicClient
        clients.append(kind(problem, strategic, state))
    return clients


def _problem(context: Context) -> Problem:
    """Return the run's problem, on the data in the node's own ``data-path`` if it names one."""
    config = dict(context.run_config)
    if "data-path" in context.node_config:
        config["data-dir"] = str(context.node_config["data-path"])
    return _parsed(tuple(config.items()))


@lru_cache(maxsize=2)
def _parsed(items: tuple[tuple[str, Scalar], ...]) -> Problem:
    return build_problem(parse_config(dict(items)))


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Tell the server which role this node was started with, and whose memory it has kept."""
    problem = _problem(context)
    round, _ = unpack_question(message.content)
    holds = node_memory(problem, context).users(round)
    said = Introduction(node_role(context), frozenset(holds))
    return Message(pack_introduction(said), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a broadcast with one gradient row per assigned user."""
    problem = _problem(context)
    broadcast = unpack_broadcast(message.content, problem.device)
    memory = node_memory(problem, context) if broadcast.session.name else None
    if memory is not None:
        memory.recall(context.state, broadcast)
    clients = node_clients(problem, broadcast.members, node_role(context), context.state)
    answers = [client.report(broadcast) for client in clients if client.asked(broadcast)]
    rows = Rows.merge([answer.gradients for answer in answers])
    report = Report(broadcast.round, broadcast.users, rows.values_by_user)
    metrics = NodeMetrics.merge(answer.metrics for answer in answers)
    if memory is not None and problem.config.checkpoint_every:
        memory.keep(context.state, broadcast)
    return Message(pack_report(report, metrics), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer with the accuracies of the node's local models."""
    problem = _problem(context)
    _, users = unpack_question(message.content)
    clients = node_clients(problem, users, node_role(context), context.state)
    accuracies = {u: value for client in clients for u, value in client.evaluate().items()}
    record = NodeMetrics(accuracies=accuracies).pack()
    return Message(RecordDict({METRICS: record}), reply_to=message)
