"""A strategic user of a run: what it knows, and what its attack is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pfl_flower.aggregation.combination import Aggregation
from pfl_flower.attacks.attack import Attack
from pfl_flower.attacks.knowledge import Knowledge, knows_rule
from pfl_flower.attacks.other_data import OtherData
from pfl_flower.attacks.poisoning.aim import PoisonedData
from pfl_flower.attacks.table import ATTACKS, knowledge_of
from pfl_flower.objective.losses import PointLoss
from pfl_flower.objective.models import Model
from pfl_flower.objective.plausible import Plausible
from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.attack_plans import fabricate, plan
from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import Problem
from pfl_flower.run.server_setup import public_rule
from pfl_flower.solvers.population import Population
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.memo import remembered


@dataclass(frozen=True)
class StrategicUser:
    """The ``AttackSetup`` of a user.

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
    def settings(self) -> RunConfig:
        """The run's configuration."""
        return self.problem.config

    @property
    def regularizer(self) -> Regularizer:
        """The coupling R; where reports are gradients of L_n, ``lam ||rho - theta_spade||^2``."""
        return self.problem.pretended

    @property
    def plausible(self) -> Plausible:
        """What the server takes for a report."""
        return self.problem.plausible

    @property
    def model(self) -> Model:
        """Of every user."""
        return self.problem.model

    @property
    def loss(self) -> PointLoss:
        """Of a point."""
        return self.problem.loss

    @property
    def bias(self) -> bool:
        """Whether the last feature of a point is the constant 1."""
        return self.problem.source.bias

    @property
    def target(self) -> Tensor:
        """theta_dagger of this user, ``(d,)``."""
        return self.problem.targets[self.settings.shift(self.user)]

    @property
    def attack_model(self) -> Tensor:
        """theta_spade of this user, ``(d,)``, worked out when first asked for."""
        return plan(self.problem, self.user).attack_model.to(self.problem.dtype)

    @property
    def fabricated(self) -> PoisonedData:
        """Data that hold theta_spade, made when first asked for."""
        return fabricate(self.problem, self.user)

    @property
    def relabelled(self) -> UserData:
        """The user's own draw, every label as the attacker wants it answered."""
        drawn = self.held
        wanted = self.problem.relabelled(drawn.labels, self.settings.shift(self.user))
        return replace(drawn, labels=wanted)

    @property
    def held(self) -> UserData:
        """The user's own draw."""
        (drawn,) = self.problem.datasets(self.own)
        return drawn

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a point."""
        return self.problem.source.shape

    @property
    def own(self) -> tuple[int, ...]:
        """The id of the dataset that this user would hold if it were honest."""
        return (self.user,)

    @property
    def drawn(self) -> tuple[int, ...]:
        """Ids of ``attack-draws`` datasets that no user of the run holds; none if omniscient."""
        return self._nobodys(self.settings.attack_draws)

    def stand_ins(self, times: int) -> tuple[int, ...]:
        """Return ids of such datasets, so many times as many as honest users a round asks."""
        honest = self.settings.sample_size() - self._asked(self.strategic)
        return self._nobodys(times * max(1, honest))

    @property
    def knowledge(self) -> Knowledge:
        """What the attacker is given."""
        return knowledge_of(self.settings)

    @property
    def rule(self) -> Aggregation:
        """The server's rule.

        Raises
        ------
        ConfigError
            If the attacker does not know it.
        """
        if not knows_rule(self.knowledge):
            right = "rule or omniscient, for an attack that asks for the rule"
            raise ConfigError(f"attack-knowledge = {self.knowledge}: expected {right}")
        return public_rule(self.problem)

    @property
    def strategic(self) -> int:
        """Number of strategic users in the run, at least 1."""
        return max(1, len(self.settings.strategic()))

    @property
    def coalition(self) -> int:
        """Number of strategic users who share the correction."""
        return self.settings.coalition or self.strategic

    @property
    def allies(self) -> int:
        """Number of strategic users asked in a round, as expected, who share this one's target."""
        return self._asked(self.settings.allies(self.user))

    def _asked(self, users: int) -> int:
        """Return how many of so many users a round's sample has, as expected, and at least one."""
        return max(1, round(users * self.settings.sample_size() / self.settings.users))

    def _nobodys(self, number: int) -> tuple[int, ...]:
        """Return ids of so many datasets that no user holds, if the attacker is to draw any.

        Raises
        ------
        ConfigError
            If it may not.
        """
        if self.knowledge == "own":
            right = "surrogates or more, for an attack that draws datasets"
            raise ConfigError(f"attack-knowledge = own: expected {right}")
        if self.knowledge == "omniscient":
            return ()
        return tuple(range(self.settings.users, self.settings.users + number))

    def strength(self, own: float) -> float:
        """Return ``attack-strength``, or the attack's own where that is empty."""
        given = self.settings.attack_strength
        return own if given == "" else given


def make_attack(problem: Problem, user: int) -> Attack[Any]:
    """Return a strategic user's attack as the run configures it.

    Raises
    ------
    ConfigError
        If it cannot be imported or made, or its options are wrong.
    """
    made: Attack[Any] = _made(problem, user)
    ATTACKS.expect(problem.config.attack, made, Attack)
    return made


@remembered
def other_data(problem: Problem, user: int) -> OtherData:
    """Return what a strategic user's honest code runs on, made once per process.

    Raises
    ------
    ConfigError
        As ``fabricate``.
    """
    made: OtherData = _made(problem, user)
    return made


@remembered
def other_population(problem: Problem, users: tuple[int, ...]) -> Population:
    """Return strategic users with their other data, in the run's precision."""
    data = [other_data(problem, user).data for user in users]
    # Soft and hard labels have different shapes and cannot share a population.
    soft = all(one.labels.ndim == 2 for one in data)
    held = [one.user(soft=soft) if isinstance(one, PoisonedData) else one for one in data]
    return problem.population_of(held)


def _made(problem: Problem, user: int) -> Any:
    config = problem.config
    return ATTACKS.make(config.attack, config.attack_options, StrategicUser(problem, user))
