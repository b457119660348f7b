"""CGA where GRAD is a ball: honest users, a target, and a lam that decides who can reach it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from experiments.studies.study import Setting
from experiments.theory.gradient_descent import Descent, descend, envelope_smoothness
from experiments.theory.scenario import Game, draw_game, far_target, honest_optimum
from pfl_flower.attacks.cga import CounterGradient
from pfl_flower.attacks.reachable import reachable_limit
from pfl_flower.objective.regularizers import Regularizer, SquaredL2
from pfl_flower.solvers.population import Population

USERS, QUICK_USERS, POINTS, DIM, NU = 4, 3, 20, 5, 0.1
ROUNDS, STILL = 3000, 1e-9
"""Runs end after so many rounds, or at a step so short."""


@dataclass(frozen=True, kw_only=True)
class Siege:
    """Honest users, a target, and how many CGA users attack; none of them in the control."""

    game: Game
    regularizer: Regularizer
    idle: bool

    @classmethod
    def of(cls, setting: Setting, loss: str, kind: type[Regularizer], share: float) -> Siege:
        """Draw honest users, and lam as a share of their pull at a far target."""
        game = siege_game(setting, loss)
        unit = SquaredL2(lam=1.0)
        target = far_target(game, honest_optimum(game, unit))
        pull = game.population(unit).gradient(target.repeat(len(game.users), 1)).sum(dim=0)
        coupling = kind(lam=share * float(torch.linalg.vector_norm(pull)))
        return cls(game=game, regularizer=coupling, idle=setting.control)

    @cached_property
    def honest(self) -> Population:
        """The honest users."""
        return self.game.population(self.regularizer)

    @cached_property
    def centre(self) -> Tensor:
        """rho*_honest, ``(d,)``."""
        return honest_optimum(self.game, self.regularizer)

    @cached_property
    def target(self) -> Tensor:
        """theta_dagger, ``(d,)``."""
        return far_target(self.game, self.centre)

    def play(self, attackers: int = 1, *, coalition: int = 1, rounds: int = ROUNDS) -> Descent:
        """Run CGA users who share the correction among ``coalition``, with ``eta = 1/(3L)``.

        From the honest optimum: an idle attacker leaves rho there.
        """
        attack = CounterGradient(target=self.target, coalition=coalition)
        return descend(
            self.honest,
            [] if self.idle else [attack] * attackers,
            eta=1 / (3 * envelope_smoothness(self.honest)),
            rounds=rounds,
            start=self.centre,
            tolerance=STILL,
        )

    def reach(self, attackers: int = 1) -> Tensor:
        """Return the limit ``(d,)`` that theory says so many attackers hold."""
        found = reachable_limit(
            self.honest, self.target, radius=attackers * self.regularizer.radius
        )
        if not found.converged:
            raise RuntimeError(f"no reachable limit: residual {found.residual:.2g}")
        return found.rho

    def shares(self, rho: Tensor) -> Tensor:
        """Return distances to the target ``(...)`` over the honest optimum's."""
        away = torch.linalg.vector_norm(self.target - self.centre)
        return torch.linalg.vector_norm(rho - self.target, dim=-1) / away


def siege_game(setting: Setting, loss: str) -> Game:
    """Return the honest users of a siege."""
    users = QUICK_USERS if setting.quick else USERS
    return draw_game(loss, seed=setting.seed, users=users, points=POINTS, dim=DIM, nu=NU)
