"""Strategic users: they report what an attack asks for, projected on what is plausible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from clients.base import Answer, Client
from clients.honest import SurrogateClient
from clients.learned import keep_targets, take_targets
from pfl_flower.aggregation.rows import Rows, positions
from pfl_flower.attacks.attack import Attack, Observation, plausible_report
from pfl_flower.attacks.gradient_matching import Cost, GradientMatching
from pfl_flower.run.strategic_user import make_attack
from pfl_flower.transport.broadcasts import Broadcast
from pfl_flower.transport.node_metrics import NodeMetrics


class StrategicClient(Client):
    """Runs one attack per strategic user and tells it what became of its last report."""

    def report(self, broadcast: Broadcast) -> Answer:
        """Return the attacks' reports, projected on GRAD(rho_t), or on what else is plausible."""
        asked = self.asked(broadcast)
        rows = dict(zip(asked, positions(asked, broadcast.users).tolist(), strict=True))
        take_targets(self.problem, self.state)
        attacks = {user: make_attack(self.problem, user) for user in asked}
        wanted = {user: getattr(attack, "datasets", ()) for user, attack in attacks.items()}
        seen = {ids: self._surrogates(ids, broadcast) for ids in set(wanted.values())}
        said: dict[Any, tuple[Tensor, Any]] = {}
        gradients: dict[int, Any] = {}
        costs: dict[Any, Cost] = {}
        for user, attack in attacks.items():
            # Some attacks say of which users the report is one vector.
            alike = getattr(attack, "joint", ("alone", user))
            accepted = int(broadcast.last_accepted[rows[user]])
            if alike not in said:
                said[alike] = self._attack(attack, user, broadcast, accepted, seen[wanted[user]])
            # Of its own class alone: an attack of somebody else's may mean anything by ``cost``.
            if isinstance(attack, GradientMatching):
                costs[alike] = attack.cost(said[alike][1])
            gradients[user] = self._kept(user, broadcast.round, *said[alike])
        keep_targets(self.problem, self.state)
        return Answer(Rows.of(gradients), _metrics(list(costs.values())))

    def _surrogates(self, datasets: tuple[int, ...], broadcast: Broadcast) -> Tensor | None:
        """Return honest reports ``(m, d)`` on these datasets, None if there are none."""
        if not datasets:
            return None
        nothing = (0,) * len(datasets)
        told = replace(broadcast, users=datasets, members=datasets, last_accepted=nothing)
        honest = SurrogateClient(self.problem, datasets, self.state).report(told).gradients
        return torch.stack([honest[dataset] for dataset in datasets])

    def _attack(
        self,
        attack: Attack[Any],
        user: int,
        broadcast: Broadcast,
        last_accepted: int,
        surrogates: Tensor | None,
    ) -> tuple[Tensor, Any]:
        """Return a user's report, and the state that it leaves."""
        kept = self.recall(f"strategic-{user}")
        start = attack.init(broadcast.rho)
        accepted = None
        if kept:
            # What an attack counts on the CPU stays there.
            places = {name: getattr(start, name).device for name in start._fields}
            moved = {name: kept[name].to(place) for name, place in places.items()}
            start = start._replace(**moved)
            # A rejected, lost or unasked report moved rho by nothing.
            if int(kept["report-round"]) == last_accepted:
                accepted = kept["report"].to(broadcast.rho.device)
        observation = Observation(
            round=broadcast.round,
            rho=broadcast.rho,
            eta=broadcast.eta,
            eta_sum=broadcast.eta_sum,
            accepted=torch.zeros_like(broadcast.rho) if accepted is None else accepted,
            honest_sum=broadcast.honest_sum,
            surrogates=surrogates,
            honest=broadcast.honest,
            coalition=broadcast.coalition or None,
        )
        return plausible_report(attack, start, observation, self.problem.plausible)

    def _kept(self, user: int, round: int, report: Tensor, state: Any) -> Tensor:
        """Return the report, remembered with the state."""
        memory = {**state._asdict(), "report": report, "report-round": torch.tensor(round)}
        self.remember(f"strategic-{user}", memory)
        return report


def _metrics(costs: Sequence[Cost]) -> NodeMetrics:
    """Return what attacks say of data that they fabricated in this round."""
    return NodeMetrics(
        poisoned_points=sum(cost.points for cost in costs),
        poisoned_labels=sum(cost.labels for cost in costs),
        poisoned_residual=max((cost.residual for cost in costs), default=0.0),
    )
