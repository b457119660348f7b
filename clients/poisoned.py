"""Poisoned users: the honest client's code on data that nobody drew, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from clients.base import Answer
from clients.honest import HonestClient
from pfl_flower.attacks.poisoning.aim import PoisonedData
from pfl_flower.run.served import Served
from pfl_flower.run.strategic_user import other_data, other_population
from pfl_flower.run.triggered import Triggered
from pfl_flower.solvers.population import Population
from pfl_flower.transport.broadcasts import Broadcast


class PoisonedClient(HonestClient):
    """Solves the honest local problem on what the run's attack puts in the data's place.

    Such data are kept whole, and left out of what is measured.
    """

    kind = "poisoned"

    def population(self) -> Population:
        """Return the users with their other data."""
        return other_population(self.problem, self.users)

    def start(self) -> Tensor:
        """Return the local models before the first round, where the attack would have them."""
        initial = self.problem.initial
        begun = [other_data(self.problem, user).start for user in self.users]
        centres = [initial if start is None else start.to(initial) for start in begun]
        return self.problem.local_start(self.users, torch.stack(centres))

    def parts(self, asked: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Population]]:
        """Yield all: such data are few, and dear to make anew."""
        yield asked, self.chosen(asked)

    def evaluate(self) -> dict[int, float]:
        """Return nothing: the run measures honest users' local models."""
        return {}

    def served(self, rho: Tensor) -> dict[int, Served]:
        """Return nothing, as ``evaluate``: these users' models serve the attack."""
        return {}

    def triggered(self, rho: Tensor) -> dict[int, Triggered]:
        """Return nothing, as ``evaluate``."""
        return {}

    def report(self, broadcast: Broadcast) -> Answer:
        """Return the honest code's reports, and for the laboratory what fabricated data cost."""
        answer = super().report(broadcast)
        data = [other_data(self.problem, user).data for user in self.users]
        made = [one for one in data if isinstance(one, PoisonedData)]
        if not made:
            return answer
        metrics = replace(
            answer.metrics,
            poisoned_points=sum(one.distinct for one in made),
            poisoned_labels=sum(one.total_weight for one in made),
            poisoned_residual=max(one.residual for one in made),
        )
        return replace(answer, metrics=metrics)
