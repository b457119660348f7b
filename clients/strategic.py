"""Strategic users: they report what an attack asks for, projected on GRAD(rho_t)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clients.base import Answer, Client
from pfl_flower.attacks import Attack, Observation, plausible_report
from pfl_flower.attacks.cga import CounterGradient
from pfl_flower.attacks.model import ModelAttack
from pfl_flower.messages import Broadcast
from pfl_flower.plans import plan
from pfl_flower.problem import Problem, resolve


@dataclass(frozen=True)
class AttackSetup:
    """What a strategic user knows when it builds its attack.

    Attributes
    ----------
    problem : Problem
        Regulariser, model and run configuration; public to all participants.
    user : int
        The strategic user's id.
    """

    problem: Problem
    user: int

    @property
    def target(self) -> Tensor:
        """theta_dagger of this user, ``(d,)``."""
        return self.problem.targets[self.problem.config.shift(self.user)]

    @property
    def attack_model(self) -> Tensor:
        """theta_spade of this user, ``(d,)``, worked out when first asked for."""
        return plan(self.problem, self.user).attack_model.to(self.problem.dtype)

    @property
    def coalition(self) -> int:
        """Number of strategic users who share the correction."""
        config = self.problem.config
        return config.coalition or max(1, len(config.strategic()))


AttackFactory = Callable[[AttackSetup], Attack[Any]]


def counter_gradient(setup: AttackSetup) -> CounterGradient:
    """Return CGA as the run configures it."""
    return CounterGradient(
        target=setup.target,
        estimator=setup.problem.config.estimator,
        coalition=setup.coalition,
    )


def model_attack(setup: AttackSetup) -> ModelAttack:
    """Return the model attack on theta_spade, whatever data the user may have."""
    return ModelAttack(attack_model=setup.attack_model, regularizer=setup.problem.regularizer)


ATTACKS: Mapping[str, AttackFactory] = {"cga": counter_gradient, "model": model_attack}


class StrategicClient(Client):
    """Runs one attack per strategic user and tells it what became of its last report."""

    def report(self, broadcast: Broadcast) -> Answer:
        """Return the attacks' reports, projected on GRAD(rho_t)."""
        factory = resolve("attack", self.problem.config.attack, ATTACKS)
        positions = {user: row for row, user in enumerate(broadcast.users)}
        gradients = {
            user: self._attack(
                factory(AttackSetup(self.problem, user)),
                user,
                broadcast,
                broadcast.last_accepted[positions[user]],
            )
            for user in self.asked(broadcast)
        }
        return Answer(gradients)

    def _attack(
        self, attack: Attack[Any], user: int, broadcast: Broadcast, last_accepted: int
    ) -> Tensor:
        name = f"strategic-{user}"
        kept = self.recall(name)
        start = attack.init(broadcast.rho)
        accepted = torch.zeros_like(broadcast.rho)
        if kept:
            moved = {field: kept[field].to(broadcast.rho.device) for field in start._fields}
            start = start._replace(**moved)
            # A rejected, lost or unasked report moved rho by nothing.
            if int(kept["report-round"]) == last_accepted:
                accepted = kept["report"].to(broadcast.rho.device)
        observation = Observation(
            round=broadcast.round,
            rho=broadcast.rho,
            eta=broadcast.eta,
            eta_sum=broadcast.eta_sum,
            accepted=accepted,
            honest_sum=broadcast.honest_sum,
        )
        report, state = plausible_report(attack, start, observation, self.problem.regularizer)
        round_tag = torch.tensor(broadcast.round)
        self.remember(name, {**state._asdict(), "report": report, "report-round": round_tag})
        return report
