"""Poisoned users: the honest client's code on fabricated data, nothing else."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from clients.base import Answer
from clients.honest import HonestClient
from pfl_flower.messages import Broadcast
from pfl_flower.plans import fabricate, plan, poisoned_population
from pfl_flower.population import Population


class PoisonedClient(HonestClient):
    """Solves the honest local problem on data made to hold theta_spade (Section 2.2)."""

    record = "poisoned"

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

    def evaluate(self) -> dict[int, float]:
        """Return nothing: the run measures honest users' local models."""
        return {}
