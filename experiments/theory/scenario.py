"""The theory's scenario: honest users who disagree, and a target far from their optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from experiments.theory.gradient_descent import Descent, descend, envelope_smoothness
from pfl_flower.attacks.attack import Attack
from pfl_flower.attacks.cga import CounterGradient
from pfl_flower.attacks.equivalence import honest_sum, model_from_gradient
from pfl_flower.attacks.poisoning.aim import Aim
from pfl_flower.objective.losses import LOSSES, PointLoss
from pfl_flower.objective.models import Linear
from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.objective.user_data import UserData
from pfl_flower.solvers.equilibrium import Equilibrium, equilibrium
from pfl_flower.solvers.population import Population
from pfl_flower.support.seeding import generator

SOLVED = 1e-11
"""Residual of exact local solves: below every tolerance that the theory's checks ask for."""
SETTLED = 1e-8
"""Residual of an equilibrium, where rounding alone leaves more than ``SOLVED``."""
FAR = 1.5
"""How far targets are from the honest optimum, in units of its length or of 1 if that is more."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Honest users, what couples them, and the target of a strategic user, who attacks or is idle.

    What follows from that is worked out when it is asked for, and kept; ``dataclasses.replace``
    makes another scenario, which works it out anew.

    Attributes
    ----------
    loss : str
        ``least-squares``, ``logistic`` or ``softmax``.
    users : tuple of UserData
        The honest users.
    regularizer : Regularizer
        R, which couples them and the strategic user.
    nu : float
        Local regularisation.
    seed : int
        Of all that was drawn, and of all that is yet to be.
    idle : bool
        The control: the strategic user does nothing.
    name : str
        Of draws that are the scenario's own.
    chosen : Tensor or None
        theta_dagger, ``(d,)``; None for one far from the honest optimum.
    outputs : int
        Scores of a point: 1, or the classes of a softmax.
    bias : bool
        Whether the last feature of a query is the constant 1.
    tolerance : float
        On the residuals of exact local solves.
    """

    loss: str
    users: tuple[UserData, ...]
    regularizer: Regularizer
    nu: float
    seed: int
    idle: bool = False
    name: str = ""
    chosen: Tensor | None = None
    outputs: int = 1
    bias: bool = False
    tolerance: float = SOLVED

    @property
    def model(self) -> Linear:
        """The linear model; of a bias only if the queries end with 1."""
        return Linear(self.users[0].features.shape[1], self.outputs)

    @property
    def dim(self) -> int:
        """Dimension d of the models."""
        return self.model.dim

    @property
    def point_loss(self) -> PointLoss:
        """The loss per point."""
        loss: PointLoss = LOSSES[self.loss]()
        return loss

    def population(self, *others: UserData, kind: type[Population] = Population) -> Population:
        """Return the honest users, then others: poisoned or adversarial."""
        return kind(
            [*self.users, *others],
            model=self.model,
            loss=self.point_loss,
            regularizer=self.regularizer,
            nu=self.nu,
            tolerance=self.tolerance,
            max_iterations=200,
        )

    @cached_property
    def honest(self) -> Population:
        """The honest users."""
        return self.population()

    @cached_property
    def honest_equilibrium(self) -> Equilibrium:
        """Where the honest users settle among themselves."""
        return settled(self.honest)

    @property
    def honest_optimum(self) -> Tensor:
        """rho*_honest, ``(d,)``."""
        return self.honest_equilibrium.rho

    @cached_property
    def target(self) -> Tensor:
        """theta_dagger, ``(d,)``."""
        if self.chosen is not None:
            return self.chosen
        draw = generator(self.seed, "target", self.loss)
        direction = torch.randn(self.dim, generator=draw, dtype=torch.float64)
        length = FAR * max(1.0, float(torch.linalg.vector_norm(self.honest_optimum)))
        return self.honest_optimum + length * torch.nn.functional.normalize(direction, dim=0)

    @property
    def away(self) -> float:
        """``||target - rho*_honest||``."""
        return float(torch.linalg.vector_norm(self.target - self.honest_optimum))

    @property
    def near(self) -> float:
        """``||rho*_honest|| / ||target - rho*_honest||``: at most 1 by the choice of the target."""
        return float(torch.linalg.vector_norm(self.honest_optimum)) / self.away

    def smoothness(self, *, constant: bool = True) -> float:
        """Return L of the honest users' summed envelopes, see ``envelope_smoothness``."""
        return envelope_smoothness(self.honest, constant=constant)

    def pulls(self, rho: Tensor) -> Tensor:
        """Return every honest user's ``grad L_n(rho)``, ``(N, d)``."""
        return self.honest.gradient(rho.repeat(len(self.users), 1))

    def aim(self, rho: Tensor, attack_model: Tensor, wanted: Tensor | None = None) -> Aim:
        """Return what poisoned data must achieve to hold rho with theta_spade, see ``Aim.at``."""
        return Aim.at(
            self.regularizer,
            rho,
            attack_model,
            model=self.model,
            loss=self.point_loss,
            nu=self.nu,
            bias=self.bias,
            wanted=wanted,
        )

    def holding(self, rho: Tensor) -> Aim:
        """Return the aim whose theta_spade holds rho: it cancels the honest sum (Proposition 3)."""
        pull = honest_sum(self.honest, rho).value
        return self.aim(rho, model_from_gradient(self.regularizer, rho, -pull).value, -pull)

    def settle(
        self, *others: UserData, model: Tensor | None = None, start: Tensor | None = None
    ) -> Equilibrium:
        """Return the exact equilibrium with other users, or with a model attack."""
        models = () if model is None else (model,)
        return settled(self.population(*others), *models, start=start)

    def attempt(self, *others: UserData, model: Tensor | None = None) -> Equilibrium:
        """Return what an attack settles at, or what idleness does in the control."""
        return self.honest_equilibrium if self.idle else self.settle(*others, model=model)

    def descend(
        self,
        attacks: Sequence[Attack[Any]],
        *,
        eta: float | None = None,
        rounds: int,
        start: Tensor | None = None,
        tolerance: float = 0.0,
        far: float = math.inf,
    ) -> Descent:
        """Run attacks, or nothing in the control, on exact honest users.

        From 0 and with the step size ``1/(3L)`` that Theorem 4 covers, unless others are given.
        """
        return descend(
            self.honest,
            [] if self.idle else attacks,
            eta=1 / (3 * self.smoothness()) if eta is None else eta,
            rounds=rounds,
            start=torch.zeros_like(self.target) if start is None else start,
            tolerance=tolerance,
            far=far,
        )

    def counter_gradient(self, *, coalition: int = 1) -> CounterGradient:
        """Return CGA towards the target, for one of so many users who share the correction."""
        return CounterGradient(target=self.target, coalition=coalition)


def settled(population: Population, *models: Tensor, start: Tensor | None = None) -> Equilibrium:
    """Return the exact equilibrium, with attack models ``(d,)`` if any.

    Poisoned data of a hundred thousand points, or of a single long query, leave local residuals
    of 1e-10 by rounding alone, which ``converged`` refuses: both residuals must be at most
    ``SETTLED``.

    Raises
    ------
    RuntimeError
        If they are not.
    """
    attack_models = torch.stack(models) if models else None
    found = equilibrium(population, attack_models=attack_models, start=start)
    if not (found.residual <= SETTLED and found.local_residual <= SETTLED):
        raise RuntimeError(
            f"no equilibrium: residuals {found.residual:.2g}, {found.local_residual:.2g}"
        )
    return found


def relative(found: Tensor, wanted: Tensor) -> float:
    """Return ``||found - wanted|| / (1 + ||wanted||)``."""
    miss = torch.linalg.vector_norm(found - wanted)
    return float(miss / (1 + torch.linalg.vector_norm(wanted)))
