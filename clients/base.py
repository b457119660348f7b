"""What all clients share: they act for a node's users; their memory is Flower's state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from pfl_flower.aggregation.rows import Rows
from pfl_flower.run.problem import Problem
from pfl_flower.run.served import Served
from pfl_flower.run.triggered import Triggered
from pfl_flower.support.users import ids, selected
from pfl_flower.transport.broadcasts import Broadcast
from pfl_flower.transport.flower_internals import put
from pfl_flower.transport.node_metrics import NodeMetrics
from pfl_flower.transport.wire import find, to_record, to_tensor


@dataclass(frozen=True)
class Answer:
    """One gradient ``(d,)`` per user who is asked, and what the client says of its work."""

    gradients: Rows
    metrics: NodeMetrics = field(default_factory=NodeMetrics)


class Client(ABC):
    """Acts for ``users`` of one node.

    Parameters
    ----------
    problem : Problem
        What is learned.
    users : tuple of int
        Ids of the users acted for, ascending.
    state : RecordDict
        Flower's ``context.state``: the only memory that survives between messages.
    """

    def __init__(self, problem: Problem, users: tuple[int, ...], state: RecordDict) -> None:
        self.problem, self.users, self.state = problem, users, state

    def asked(self, broadcast: Broadcast) -> tuple[int, ...]:
        """Return those of the users that the broadcast asks."""
        if broadcast.users == self.users:
            return self.users
        return selected(broadcast.users, ids(self.users))

    @abstractmethod
    def report(self, broadcast: Broadcast) -> Answer:
        """Return the gradients to report and remember what the next round needs."""

    def evaluate(self) -> dict[int, float]:
        """Return the accuracies of local models by user; none where there is no such model."""
        return {}

    def served(self, rho: Tensor) -> dict[int, Served]:
        """Return what models come to on users' own test sets; none where nobody is measured."""
        return {}

    def triggered(self, rho: Tensor) -> dict[int, Triggered]:
        """Return what the trigger of the run's attack does to users' models; none without one."""
        return {}

    def recall(self, name: str) -> dict[str, Tensor]:
        """Return the tensors remembered under ``name``; empty if there are none.

        In one process they are where they were, from elsewhere they come on the CPU.
        """
        record = find(self.state, name, ArrayRecord)
        return {} if record is None else {key: to_tensor(value) for key, value in record.items()}

    def remember(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under ``name`` in place of what was there."""
        put(self.state, name, to_record(tensors))
