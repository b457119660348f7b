"""Honest users: they solve the local problem on their data, and report R's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.base import Answer, Client
from pfl_flower.local_steps import OptimizerName, StepState, optimizer_step
from pfl_flower.messages import Broadcast, NodeMetrics
from pfl_flower.population import Population
from pfl_flower.seeding import generator
from pfl_flower.server_steps import StepSizes


class HonestClient(Client):
    """``theta_n = argmin L_n + R(rho, .)``, or a step to it; ``g_n = grad_rho R(rho, theta_n)``."""

    record = "honest"
    """Name of its memory in the state of a node, which other kinds of clients may share."""

    def population(self) -> Population:
        """Return the users with their data; a poisoned client differs in this alone."""
        return self.problem.population(self.users)

    def start(self) -> Tensor:
        """Return the local models before the first round, ``(k, d)``."""
        return self.problem.local_start(self.users)

    def report(self, broadcast: Broadcast) -> Answer:
        """Return the honest reports of a round (Section 2.2)."""
        population, memory = self.population(), self._memory()
        if self.problem.config.local_solver == "exact":
            solution = population.solve(broadcast.rho, memory["theta"])
            reports = population.report(broadcast.rho, solution.theta)
            self._keep({"theta": solution.theta})
            metrics = NodeMetrics(
                worst_residual=float(solution.residual.max()),
                unconverged=int((~solution.converged).sum()),
            )
        else:
            before = memory["theta"]
            after, residual = self._step(population, broadcast, memory)
            used = before if self.problem.config.simultaneous else after
            reports = population.report(broadcast.rho, used)
            metrics = NodeMetrics(worst_residual=residual)
        return Answer(dict(zip(self.users, reports, strict=True)), metrics)

    def evaluate(self) -> dict[int, float]:
        """Return the accuracy of each local model on the test set; none for regression."""
        if self.problem.source.loss == "least-squares":
            return {}
        features, labels = self.problem.test_set
        theta = self._memory()["theta"]
        accuracies = self.population().accuracy(theta, features, labels).tolist()
        return dict(zip(self.users, accuracies, strict=True))

    def _memory(self) -> dict[str, Tensor]:
        """Return the users' models and optimiser states, new ones for users not met before."""
        kept = self.recall(self.record)
        known = kept.get("users", torch.zeros(0, dtype=torch.int64)).tolist()
        newcomers = not set(self.users) <= set(known)
        shape = len(self.users), self.problem.model.dim
        theta = self.start() if newcomers else self.problem.initial.new_zeros(shape)
        fresh = StepState.init(theta)
        start = {
            "theta": theta,
            "steps": fresh.steps,
            "first": fresh.first,
            "second": fresh.second,
        }
        for row, user in enumerate(self.users):
            if user in known:
                for name in start.keys() & kept.keys():
                    start[name][row] = kept[name][known.index(user)]
        return start

    def _keep(self, tensors: dict[str, Tensor]) -> None:
        self.remember(self.record, {"users": torch.tensor(self.users), **tensors})

    def _step(
        self, population: Population, broadcast: Broadcast, memory: dict[str, Tensor]
    ) -> tuple[Tensor, float]:
        """Return the models after a step, and the largest gradient norm before it."""
        config, theta = self.problem.config, memory["theta"]
        if config.batch_size:
            gradient = population.minibatch_gradient(theta, self._draws(broadcast.round))
        else:
            gradient = population.gradient(theta)
        gradient = gradient - self.problem.regularizer.grad_rho(broadcast.rho, theta)
        sizes = StepSizes(
            first=config.local_lr, decay=config.local_lr_decay, floor=config.local_lr_floor
        )
        state = StepState(memory["steps"], memory["first"], memory["second"])
        name: OptimizerName = "adam" if config.local_solver == "adam" else "sgd"
        after, state = optimizer_step(name, theta, gradient, state, sizes.at(broadcast.round))
        moments = {"first": state.first, "second": state.second} if name == "adam" else {}
        self._keep({"theta": after, "steps": state.steps, **moments})
        return after, float(torch.linalg.vector_norm(gradient, dim=1).max())

    def _draws(self, round: int) -> list[Tensor]:
        config = self.problem.config
        return [
            torch.rand(config.batch_size, generator=generator(config.seed, "batch", user, round))
            for user in self.users
        ]
