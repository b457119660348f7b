"""What a node does with a message: its own role and memory, and the clients of its users."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from logging import WARNING
from pathlib import Path

from flwr.app import Context, RecordDict
from torch import Tensor

from clients.base import Client
from clients.honest import HonestClient
from clients.memory import Memory, told
from clients.poisoned import PoisonedClient
from clients.strategic import StrategicClient
from pfl_flower.aggregation.reports import Report
from pfl_flower.aggregation.rows import Rows
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.data.table import DATASETS
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.keys import Scalar
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.threads import one_thread
from pfl_flower.support.users import divided
from pfl_flower.support.world import out_of_memory
from pfl_flower.transport.broadcasts import Broadcast
from pfl_flower.transport.flower_internals import log
from pfl_flower.transport.node_metrics import NodeMetrics
from pfl_flower.transport.questions import ROLES, Introduction


@dataclass(frozen=True)
class Node:
    """A node of Flower's while it answers one message.

    Attributes
    ----------
    problem : Problem
        The run's, on the data in the node's own ``data-path`` if it names one.
    role : str
        What it was started as: ``strategic``, ``honest``, or ``auto`` for the run's choice.
    state : RecordDict
        Flower's ``context.state``.
    state_folder : str
        The node's own ``state-dir``, or the run's.
    """

    problem: Problem
    role: str
    state: RecordDict
    state_folder: str

    @classmethod
    def of(cls, context: Context) -> Node:
        """Return the node of a context.

        Raises
        ------
        ConfigError
            If the run's configuration cannot be run, or the node's names another role.
        DataError
            If the data cannot be had.
        """
        own, keys = context.node_config, dict(context.run_config)
        config = _config(tuple(keys.items()))
        # A node is started for runs of any data; not all of them lie in a folder.
        reads = DATASETS.row(config.dataset).reads
        if "data-path" in own and "data-dir" in reads:
            keys["data-dir"] = str(own["data-path"])
            if config.test_data:
                # It is the server's.
                keys |= {"test-data": "", "holdout": 0.0}
            config = _config(tuple(keys.items()))
        problem = build_problem(config, on_node=True)
        role = str(own.get("role", "auto"))
        if role not in ROLES:
            raise ConfigError(f"role = {role}: expected {', '.join(ROLES)}")
        return cls(
            problem, role, context.state, str(own.get("state-dir", problem.config.state_dir))
        )

    @property
    def memory(self) -> Memory:
        """What it keeps on its disk: in the state folder, or in the folder of the run."""
        return Memory(self.problem.config.state_folder(self.state_folder))

    def introduction(self, round: int) -> Introduction:
        """Return its role, and the users whose memory of a round up to ``round`` it has kept."""
        return Introduction(self.role, frozenset(self.memory.users(round)))

    def report(self, broadcast: Broadcast) -> tuple[Report, NodeMetrics]:
        """Return one gradient row per user who is asked, and what is to be said of the work."""
        with one_thread():
            return self._report(broadcast)

    def _report(self, broadcast: Broadcast) -> tuple[Report, NodeMetrics]:
        # Where nothing is kept no folder is looked at, and to name it takes longer than to step.
        memory = self.memory if broadcast.session.name else Memory(Path())
        memory.recall(self.state, broadcast)
        took = told(self.state, broadcast.users)
        clients = node_clients(self.problem, broadcast.members, self.role, self.state)
        answers = [client.report(broadcast) for client in clients if client.asked(broadcast)]
        kept = True
        if self.problem.config.checkpoint_every:
            kept = memory.keep(self.state, broadcast)
        accuracies = measured(clients) if broadcast.measured else {}
        rows = Rows.merge(answer.gradients for answer in answers)
        report = Report(broadcast.round, broadcast.users, rows.values_by_user)
        metrics = NodeMetrics.merge(answer.metrics for answer in answers)
        if took or accuracies or not kept:
            metrics = replace(metrics, memory=took, unkept=int(not kept), accuracies=accuracies)
        return report, metrics

    def evaluation(self, users: tuple[int, ...], rho: Tensor | None = None) -> NodeMetrics:
        """Return how good the users' local models are; with rho, also what they come to by user.

        That is on their own test sets, and on points with the trigger of the run's attack.
        """
        with one_thread():
            return self._evaluation(users, rho)

    def _evaluation(self, users: tuple[int, ...], rho: Tensor | None) -> NodeMetrics:
        clients = node_clients(self.problem, users, self.role, self.state)
        found = _accuracies(clients)
        if rho is None:
            return NodeMetrics(accuracies=found)
        there = rho.to(self.problem.device)
        served = {u: value for client in clients for u, value in client.served(there).items()}
        led = {u: value for client in clients for u, value in client.triggered(there).items()}
        return NodeMetrics(accuracies=found, served=served, triggered=led)


def measured(clients: Iterable[Client]) -> dict[int, float]:
    """Return how good local models are, to be said with reports, whose worth is another matter.

    What cannot be measured costs no report: the server asks once more, and is told why.
    """
    try:
        return _accuracies(clients)
    except Exception as error:
        if out_of_memory(error):
            raise
        log(WARNING, "the local models cannot be measured: %s", one_line(error))
        return {}


def _accuracies(clients: Iterable[Client]) -> dict[int, float]:
    return {user: value for client in clients for user, value in client.evaluate().items()}


def node_clients(
    problem: Problem, users: tuple[int, ...], role: str, state: RecordDict
) -> list[Client]:
    """Return the clients that act for a node's users; the node's own role wins over the run's."""
    chosen = problem.config.strategic() if role == "auto" else frozenset()
    strategic, honest = (users, ()) if role == "strategic" else divided(users, chosen)
    clients: list[Client] = []
    if honest:
        clients.append(HonestClient(problem, honest, state))
    if strategic:
        gives = ATTACKS.row(problem.config.attack).gives
        kind = PoisonedClient if gives == "data" else StrategicClient
        clients.append(kind(problem, strategic, state))
    return clients


@lru_cache(maxsize=8)
def _config(items: tuple[tuple[str, Scalar], ...]) -> RunConfig:
    """Return a run's configuration: a node that keeps its process is told the same every round.

    Of the problem ``build_problem`` knows when it is another one, because a file has changed.
    """
    return parse_config(dict(items))
