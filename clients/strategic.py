"""Strategic users: they report what an attack asks for, projected on GRAD(rho_t)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clients.base import Answer, Client
from clients.honest import SurrogateClient
from pfl_flower.attacks.attack import Attack, Observation, plausible_report
from pfl_flower.attacks.cga import CounterGradient
from pfl_flower.attacks.model import ModelAttack
from pfl_flower.attacks.untargeted import (
    GaussianNoise,
    InnerProduct,
    LittleIsEnough,
    MinMax,
    SignFlip,
    least_noticed,
)
from pfl_flower.run.attack_plans import plan
from pfl_flower.run.problem import Problem
from pfl_flower.support.extensions import resolve
from pfl_flower.transport.messages import Broadcast


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
    def own(self) -> tuple[int, ...]:
        """The id of the dataset that this user would hold if it were honest."""
        return (self.user,)

    @property
    def drawn(self) -> tuple[int, ...]:
        """Ids of ``attack-draws`` datasets that no user of the run holds."""
        first = self.problem.config.users
        return tuple(range(first, first + self.problem.config.attack_draws))

    def strength(self, own: float) -> float:
        """Return ``attack-strength``, or the attack's own where that is 0."""
        return self.problem.config.attack_strength or own

    @property
    def coalition(self) -> int:
        """Number of strategic users who share the correction."""
        return self.problem.config.coalition or self.strategic

    @property
    def strategic(self) -> int:
        """Number of strategic users in the run, at least 1."""
        return max(1, len(self.problem.config.strategic()))


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


def sign_flip(setup: AttackSetup) -> SignFlip:
    """Return the opposite of the user's own honest report."""
    return SignFlip(datasets=setup.own, strength=setup.strength(1.0))


def gaussian(setup: AttackSetup) -> GaussianNoise:
    """Return noise, by default ten times as long as the user's own honest report."""
    seed, strength = setup.problem.config.seed, setup.strength(10.0)
    return GaussianNoise(datasets=setup.own, seed=seed, user=setup.user, strength=strength)


def little_is_enough(setup: AttackSetup) -> LittleIsEnough:
    """Return Baruch et al.'s attack, by default with their z."""
    z = least_noticed(setup.problem.config.users, setup.strategic)
    return LittleIsEnough(datasets=setup.drawn, strength=setup.strength(z))


def inner_product(setup: AttackSetup) -> InnerProduct:
    """Return Xie et al.'s attack, by default twice what turns the sum around: mu is a guess."""
    honest = max(1, setup.problem.config.users - setup.strategic)
    epsilon = 2.0 * honest / setup.strategic
    return InnerProduct(datasets=setup.drawn, strength=setup.strength(epsilon))


def min_max(setup: AttackSetup) -> MinMax:
    """Return Shejwalkar and Houmansadr's attack."""
    return MinMax(datasets=setup.drawn)


ATTACKS: Mapping[str, AttackFactory] = {
    "cga": counter_gradient,
    "model": model_attack,
    "sign-flip": sign_flip,
    "gaussian": gaussian,
    "little-is-enough": little_is_enough,
    "inner-product": inner_product,
    "min-max": min_max,
}


class StrategicClient(Client):
    """Runs one attack per strategic user and tells it what became of its last report."""

    def report(self, broadcast: Broadcast) -> Answer:
        """Return the attacks' reports, projected on GRAD(rho_t)."""
        factory = resolve("attack", self.problem.config.attack, ATTACKS)
        positions = {user: row for row, user in enumerate(broadcast.users)}
        attacks = {user: factory(AttackSetup(self.problem, user)) for user in self.asked(broadcast)}
        wanted = {user: getattr(attack, "datasets", ()) for user, attack in attacks.items()}
        seen = {ids: self._surrogates(ids, broadcast) for ids in set(wanted.values())}
        gradients = {
            user: self._attack(
                attack,
                user,
                broadcast,
                broadcast.last_accepted[positions[user]],
                seen[wanted[user]],
            )
            for user, attack in attacks.items()
        }
        return Answer(gradients)

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
            surrogates=surrogates,
        )
        report, state = plausible_report(attack, start, observation, self.problem.regularizer)
        round_tag = torch.tensor(broadcast.round)
        self.remember(name, {**state._asdict(), "report": report, "report-round": round_tag})
        return report
