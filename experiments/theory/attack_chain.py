"""The chain that Theorem 1 walks: one game, its target, and every attack upon it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from experiments.studies.study import Setting
from experiments.theory.gradient_descent import (
    Descent,
    GradientSequence,
    descend,
    envelope_smoothness,
)
from experiments.theory.scenario import Game, draw_game, far_target, honest_optimum, settled
from pfl_flower.attacks.attack import Attack
from pfl_flower.attacks.cga import CounterGradient
from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData, gaussian_queries
from pfl_flower.attacks.poisoning.repeated import repeated
from pfl_flower.attacks.poisoning.sampling import sampling
from pfl_flower.attacks.poisoning.single_point import single_point
from pfl_flower.objective.losses import LeastSquares
from pfl_flower.objective.regularizers import Regularizer, SmoothL2, SquaredL2
from pfl_flower.solvers.equilibrium import Equilibrium
from pfl_flower.solvers.population import Population
from pfl_flower.support.seeding import generator

LAM = 10.0
"""Strength of squared l2; that of smooth l2 depends on what the target takes."""
REACHED, MISSED = 2.0, 0.05
"""Strength of smooth l2 over ``sum_n ||grad L_n(target)||``: enough for the target, or not."""
NOISE = 1.0
"""Standard deviation of the answers in a regression's sampled data."""
ROUNDS, STILL = 5000, 1e-12
"""Gradient attacks end after so many rounds, or at a step so short."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A game, its target, and a strategic user who attacks or, in the control, is idle."""

    game: Game
    regularizer: Regularizer
    target: Tensor
    idle: bool
    name: str

    @classmethod
    def of(cls, setting: Setting, loss: str, name: str, share: float = REACHED) -> Chain:
        """Draw three honest users of ten points: few, so that theta_spade stays moderate."""
        game = draw_game(loss, seed=setting.seed, users=3, points=10, dim=4, nu=0.5)
        coupling: Regularizer = SquaredL2(lam=LAM)
        target = far_target(game, honest_optimum(game, coupling))
        if name == "smooth-l2":
            pulls = game.population(coupling).gradient(target.repeat(len(game.users), 1))
            coupling = SmoothL2(lam=share * float(torch.linalg.vector_norm(pulls, dim=1).sum()))
        return cls(
            game=game,
            regularizer=coupling,
            target=target,
            idle=setting.control,
            name=f"{loss}/{name}",
        )

    @property
    def honest(self) -> Population:
        """The honest users."""
        return self.game.population(self.regularizer)

    def settle(self, model: Tensor | None = None, data: PoisonedData | None = None) -> Equilibrium:
        """Return the exact equilibrium with a model attack or poisoned data."""
        others = () if data is None else (data.user(),)
        models = () if model is None else (model,)
        return settled(self.game.population(self.regularizer, *others), *models)

    @cached_property
    def centre(self) -> Equilibrium:
        """The equilibrium of the honest users alone."""
        return self.settle()

    def attempt(self, **attack: Any) -> Equilibrium:
        """Return what the attack settles at, or what idleness does in the control."""
        return self.centre if self.idle else self.settle(**attack)

    def counter_gradient(self, *, idle: bool = False) -> Descent:
        """Run CGA with the step size that Theorem 4 covers, or nothing."""
        if idle:
            return self._descend([], 1 / envelope_smoothness(self.honest, constant=False))
        eta = 1 / (3 * envelope_smoothness(self.honest))
        return self._descend([CounterGradient(target=self.target)], eta)

    def sequence(self, gradients: Callable[[int], Tensor], *, idle: bool = False) -> Descent:
        """Run an attack that sends given gradients, or nothing."""
        eta = 1 / envelope_smoothness(self.honest, constant=False)
        return self._descend([] if idle else [GradientSequence(gradients)], eta)

    def _descend(self, attacks: Sequence[Attack[Any]], eta: float) -> Descent:
        start = torch.zeros_like(self.target)
        return descend(self.honest, attacks, eta=eta, rounds=ROUNDS, start=start, tolerance=STILL)

    def exact(self, aim: Aim) -> PoisonedData:
        """Return data that meet the aim exactly: Theorem 5's point, or one repeated query."""
        if isinstance(aim.loss, LeastSquares):
            return single_point(aim)
        return repeated(aim, integer=True)

    def sampled(self, aim: Aim, size: int, draw: int) -> PoisonedData:
        """Return standard normal queries answered by theta_spade."""
        source = generator(self.game.seed, "thm1", self.name, size, draw)
        queries = gaussian_queries(aim, size, generator=source)
        return sampling(aim, queries, generator=source, noise=NOISE)
