"""Poisoned users: the honest client's code on fabricated or relabelled data, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from clients.base import Answer
from clients.honest import HonestClient
from pfl_flower.run.attack_plans import fabricate, plan, poisoned_population
from pfl_flower.solvers.population import Population
from pfl_flower.transport.messages import Broadcast


class OtherDataClient(HonestClient):
    """The honest code on data that nobody drew: kept whole, and left out of what is measured."""

    def parts(self, asked: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Population]]:
        """Yield all: such data are few, and dear to make anew."""
        yield asked, self.chosen(asked)

    def evaluate(self) -> dict[int, float]:
        """Return nothing: the run measures honest users' local models."""
        return {}


class PoisonedClient(OtherDataClient):
    """Solves the honest local problem on data made to hold theta_spade (Section 2.2)."""

    kind = "poisoned"

    def population(self) -> Population:
        """Return the users with their fabricated data."""
        return poisoned_population(self.problem, self.users)

    def start(self) -> Tensor:
        """Return the local models before the first round, at theta_spade if the run says so."""
        if self.problem.config.initialization == "global":
            return super().start()
        models = [plan(self.problem, user).attack_model for user in self.users]
        centres = torch.stack(models).to(self.problem.initial)
        return self.problem.local_start(self.users, centres)

    def report(self, broadcast: Broadcast) -> Answer:
        """Return the honest code's reports, and for the laboratory what the data cost."""
        answer = super().report(broadcast)
        data = [fabricate(self.problem, user) for user in self.users]
        metrics = replace(
            answer.metrics,
            poisoned_points=sum(made.distinct for made in data),
            poisoned_labels=sum(made.total_weight for made in data),
            poisoned_residual=max(made.residual for made in data),
        )
        return replace(answer, metrics=metrics)


class RelabelledClient(OtherDataClient):
    """Label flipping: the honest code on the user's own draw, every label as the attacker wants it.

    Class c becomes c + target-shift, an answer or a sign its opposite; nothing else is known or
    done (Tolpegin, Truex, Gursoy, Liu, *Data poisoning attacks against federated learning
    systems*, 2020).
    """

    kind = "relabelled"

    def population(self) -> Population:
        """Return the users with their relabelled data."""
        key = "relabelled", self.users
        if key not in self.problem.prepared:
            data = zip(self.users, self.problem.datasets(self.users), strict=True)
            shift, relabel = self.problem.config.shift, self.problem.relabelled
            made = [replace(own, labels=relabel(own.labels, shift(user))) for user, own in data]
            self.problem.prepared[key] = self.problem.population_of(made)
        found: Population = self.problem.prepared[key]
        return found
