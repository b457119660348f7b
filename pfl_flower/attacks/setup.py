"""What a strategic user knows when its attack is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from pfl_flower.attacks.knowledge import Knowledge
from pfl_flower.attacks.poisoning.aim import PoisonedData
from pfl_flower.objective.losses import PointLoss
from pfl_flower.objective.models import Model
from pfl_flower.objective.plausible import Plausible
from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.objective.user_data import UserData
from pfl_flower.support.run_settings import RunSettings


class AttackSetup(Protocol):
    """A strategic user of a run; what costs time is worked out when it is first asked for."""

    @property
    def settings(self) -> RunSettings:
        """The run's configuration, public to all participants."""
        ...

    @property
    def user(self) -> int:
        """The user's id."""
        ...

    @property
    def regularizer(self) -> Regularizer:
        """The coupling R; without one in reports, the loss by which one holds theta_spade."""
        ...

    @property
    def plausible(self) -> Plausible:
        """What the server takes for a report: GRAD(rho), or what it has in its place."""
        ...

    @property
    def model(self) -> Model:
        """Of every user."""
        ...

    @property
    def loss(self) -> PointLoss:
        """Of a point."""
        ...

    @property
    def bias(self) -> bool:
        """Whether the last feature of a point is the constant 1."""
        ...

    @property
    def target(self) -> Tensor:
        """theta_dagger of this user, ``(d,)``; of a run with a trigger, a model it opens."""
        ...

    @property
    def attack_model(self) -> Tensor:
        """theta_spade of this user, ``(d,)``."""
        ...

    @property
    def fabricated(self) -> PoisonedData:
        """Data that hold theta_spade, by the run's ``poisoning``."""
        ...

    @property
    def relabelled(self) -> UserData:
        """The user's own draw, every label as the attacker wants it answered."""
        ...

    @property
    def held(self) -> UserData:
        """The user's own draw, as an honest user would have it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a point: ``(channels, height, width)`` of an image, else its number of features."""
        ...

    @property
    def own(self) -> tuple[int, ...]:
        """The id of the dataset that this user would hold if it were honest."""
        ...

    @property
    def drawn(self) -> tuple[int, ...]:
        """Ids of ``attack-draws`` datasets that no user of the run holds; none if omniscient."""
        ...

    def stand_ins(self, times: int) -> tuple[int, ...]:
        """Return ids of such datasets, so many times as many as honest users a round asks."""
        ...

    @property
    def knowledge(self) -> Knowledge:
        """What the attacker is given: ``attack-knowledge``, or the attack's own."""
        ...

    @property
    def rule(self) -> Callable[[Tensor], Tensor]:
        """The server's rule, from rows ``(n, d)`` to a direction ``(d,)``; to who may know it."""
        ...

    @property
    def strategic(self) -> int:
        """Number of strategic users in the run, at least 1."""
        ...

    @property
    def coalition(self) -> int:
        """Number of strategic users who share CGA's correction."""
        ...

    @property
    def allies(self) -> int:
        """Number of strategic users asked in a round, as expected, who share this one's target."""
        ...

    def strength(self, own: float) -> float:
        """Return ``attack-strength``, or the attack's own where that is empty."""
        ...
