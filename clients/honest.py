"""Honest users: they solve the local problem on their data, and report R's gradient, or L_n's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clients.base import Answer, Client
from clients.local_steps import begun
from clients.own_tests import judged, judged_alone
from clients.personal_models import Asked, answered
from clients.triggered import led
from pfl_flower.aggregation.rows import Rows, positions
from pfl_flower.run.served import Served
from pfl_flower.run.triggered import Triggered
from pfl_flower.solvers.population import Population
from pfl_flower.support.users import ids
from pfl_flower.transport.broadcasts import Broadcast
from pfl_flower.transport.node_metrics import NodeMetrics


class HonestClient(Client):
    """``theta_n = argmin L_n + R(rho, .)``, or steps to it; ``g_n = grad_rho R(rho, theta_n)``.

    Under another ``personalization`` than the paper's: see ``clients.personal_models``.
    """

    kind = "honest"
    """Each kind of client has a memory of its own in the state of a node."""

    @property
    def record(self) -> str:
        """Name of the memory in the state."""
        return self.kind

    def population(self) -> Population:
        """Return the users with their data; a poisoned client differs in this alone."""
        return self.problem.population(self.users)

    def start(self) -> Tensor:
        """Return the local models before the first round, ``(k, d)``."""
        return self.problem.local_start(self.users)

    def report(self, broadcast: Broadcast) -> Answer:
        """Return the honest reports of a round (Section 2.2)."""
        asked, memory = self.asked(broadcast), self._memory()
        reports, metrics = [], []
        for users, population in self.parts(asked):
            rows = None if users == self.users else positions(users, self.users)
            part = memory if rows is None else {name: kept[rows] for name, kept in memory.items()}
            answer, after, said = self._answer(population, users, broadcast, part)
            reports.append(answer)
            metrics.append(said)
            for name, values in after.items():
                if rows is None:
                    memory[name] = values
                else:
                    memory[name][rows] = values
        self.remember(self.record, {"users": ids(self.users), **memory})
        gradients = reports[0] if len(reports) == 1 else torch.cat(reports)
        return Answer(Rows.ordered(ids(asked), gradients), NodeMetrics.merge(metrics))

    def parts(self, asked: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Population]]:
        """Yield groups of the users that are asked, with their data."""
        size = self.problem.config.chunk_users
        if not size or len(self.users) <= size:
            yield asked, self.chosen(asked)
            return
        often = self.problem.config.local_solver == "exact"
        for first in range(0, len(asked), size):
            some = asked[first : first + size]
            yield some, self.problem.draw(some, compress=often)

    def chosen(self, asked: tuple[int, ...]) -> Population:
        """Return those of the population that are asked."""
        population = self.population()
        return (
            population if asked == self.users else population.select(positions(asked, self.users))
        )

    def evaluate(self) -> dict[int, float]:
        """Return the accuracy of each local model on the test set; none for regression."""
        tests = self.problem.test_set
        if not len(tests.labels) or self.problem.source.loss == "least-squares":
            return {}
        theta = self._memory()["theta"]
        accuracies = tests.accuracy_of_each(self.problem.model, theta)
        return dict(zip(self.users, accuracies.tolist(), strict=True))

    def served(self, rho: Tensor) -> dict[int, Served]:
        """Return what theta_n, rho and a model learned alone come to on users' own test sets."""
        name = f"alone-{self.kind}"
        kept = self.recall(name)
        if not torch.equal(kept.get("users", ids(())), ids(self.users)):
            kept = {"users": ids(self.users), "values": judged_alone(self.problem, self.users)}
            self.remember(name, kept)
        return judged(self.problem, self.users, self._used(rho), rho, kept["values"])

    def triggered(self, rho: Tensor) -> dict[int, Triggered]:
        """Return how many triggered test points theta_n and rho take for the trigger's label."""
        return led(self.problem, self.users, self._used(rho), rho)

    def _used(self, rho: Tensor) -> Tensor:
        """Return the models that users work with, ``(k, d)``: without personalisation rho."""
        if self.problem.config.personalization == "classical":
            return rho.expand(len(self.users), -1)
        return self._memory()["theta"]

    def _answer(
        self,
        population: Population,
        users: tuple[int, ...],
        broadcast: Broadcast,
        memory: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor], NodeMetrics]:
        """Return users' reports, what they remember, and what is to be said of the solves."""
        return answered(
            Asked(self.problem, population, users, broadcast.round, broadcast.rho, memory)
        )

    def _memory(self) -> dict[str, Tensor]:
        """Return the users' models and optimiser states, new ones for users not met before."""
        kept = self.recall(self.record)
        known = kept.pop("users", ids(()))
        if torch.equal(known, ids(self.users)):
            return {name: self._placed(name, value) for name, value in kept.items()}
        where = positions(self.users, known)
        met = where >= 0
        if bool(met.all()):
            return {name: self._placed(name, value[where]) for name, value in kept.items()}
        memory = begun(self.problem.config, self.start())
        for name in memory.keys() & kept.keys():
            memory[name][met] = kept[name][where[met]].to(memory[name].device)
        return memory

    def _placed(self, name: str, value: Tensor) -> Tensor:
        """Return what is remembered where it is used: the counts of steps are read on the CPU."""
        return value if name == "steps" else value.to(self.problem.device)


class SurrogateClient(HonestClient):
    """The honest code on datasets of the attacker's own, with a memory apart from honest users'.

    Its user ids are those of datasets: a strategic user's own, or ids past the last user, whose
    data nobody else holds.
    """

    @property
    def record(self) -> str:
        """Name of a memory apart from that of honest users on the same node."""
        return f"surrogates-{self.users[0]}-{self.kind}"
