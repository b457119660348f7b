"""The games in which poisoning methods compete for labels: logistic regression, and the digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, one_hot

from experiments.theory.scenario import draw_game, far_target, honest_optimum
from pfl_flower.aggregation.server_steps import StepSizes
from pfl_flower.attacks.equivalence import honest_sum, model_from_gradient
from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData
from pfl_flower.objective.losses import PointLoss, Softmax
from pfl_flower.objective.models import Linear, augment
from pfl_flower.objective.regularizers import SquaredL2
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import build_problem
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.solvers.population import Population
from pfl_flower.support.seeding import generator

LOCAL_STEPS = StepSizes(first=0.02, decay=0.99, floor=0.005)
START_NOISE = 0.1


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Honest users, a target, and a strategic user who poisons or, if idle, is absent.

    Attributes
    ----------
    name : str
        Of its random draws.
    users : tuple of UserData
        The honest users.
    model, loss, coupling, nu
        The problem.
    centre, target : Tensor
        rho*_honest and theta_dagger, ``(d,)``.
    seed : int
        Of every draw of the attack.
    bias : bool
        Whether the last feature of a query is the constant 1.
    idle : bool
        Whether the strategic user does nothing.
    warm : bool
        Whether equilibria start at the aim rather than at 0, which is only a matter of speed.
    gap : float
        See ``matching``.
    """

    name: str
    users: tuple[UserData, ...]
    model: Linear
    loss: PointLoss
    coupling: SquaredL2
    nu: float
    centre: Tensor
    target: Tensor
    seed: int
    bias: bool = False
    idle: bool = False
    warm: bool = False
    gap: float = 0.02

    def population(self, *others: UserData) -> Population:
        """Return the honest users, then others."""
        return Population(
            [*self.users, *others],
            model=self.model,
            loss=self.loss,
            regularizer=self.coupling,
            nu=self.nu,
        )

    def others(self, data: PoisonedData) -> tuple[UserData, ...]:
        """Return the poisoned user; nobody if idle."""
        labels = _distributions(data.labels, self.loss, self.model.outputs)
        return () if self.idle else (UserData(data.features, labels, data.weights),)

    def aim(self, share: float = 1.0) -> Aim:
        """Return the aim of holding ``rho*_honest + share (target - rho*_honest)``."""
        rho = self.centre + share * (self.target - self.centre)
        pull = honest_sum(self.population(), rho).value
        spade = model_from_gradient(self.coupling, rho, -pull).value
        return Aim.at(
            self.coupling,
            rho,
            spade,
            model=self.model,
            loss=self.loss,
            nu=self.nu,
            bias=self.bias,
        )

    @cached_property
    def goal(self) -> Aim:
        """The aim of holding the target."""
        return self.aim()

    def held(self, aim: Aim) -> Tensor:
        """Return where an aim holds rho, ``(d,)``: ``theta_spade + g/(2 lam)``."""
        return aim.attack_model + aim.gradient / (2 * self.coupling.lam)

    def settle(self, data: PoisonedData, start: Tensor | None = None) -> tuple[Tensor, float]:
        """Return rho* of the exact equilibrium, from 0 if no start is given, and its residual."""
        start = self.centre if self.idle else start
        found = equilibrium(self.population(*self.others(data)), start=start)
        return found.rho, max(found.residual, found.local_residual)

    def transient(
        self, rounds: int, aim: Aim, data: PoisonedData | None, *, informed: bool = True
    ) -> Tensor:
        """Return rho_T: local Adam steps, server SGD with the automatic step, from 0.

        Both updates use rho_t and theta^t, as in the paper's experiments. The poisoned user's
        model starts at theta_spade with noise (Appendix I.3), or at 0 if not ``informed``. Without
        data nobody is strategic.
        """
        population = self.population(*(() if data is None else self.others(data)))
        theta = torch.zeros((population.size, self.model.dim), dtype=torch.float64)
        for row in range(len(self.users), population.size if informed else 0):
            draw = generator(self.seed, "budget", self.name, "start")
            noise = torch.randn(self.model.dim, generator=draw, dtype=torch.float64)
            theta[row] = aim.attack_model + START_NOISE * noise
        rho, local = torch.zeros_like(self.target), torch.nn.Parameter(theta)
        optimizer = torch.optim.Adam([local])
        steps = StepSizes.auto(self.coupling, population.size)
        for round in range(1, rounds + 1):
            theta = local.detach()
            report = population.report(rho, theta).sum(dim=0)
            local.grad = population.gradient(theta) - self.coupling.grad_rho(rho, theta)
            optimizer.param_groups[0]["lr"] = LOCAL_STEPS.at(round)
            optimizer.step()
            rho = rho - steps.at(round) * report
        return rho


def binary_scene(seed: int, *, idle: bool) -> Scene:
    """Return ten honest users of logistic regression in ten dimensions, and a far target."""
    game = draw_game("logistic", seed=seed, users=10, points=40, dim=10, nu=0.01)
    coupling = SquaredL2(lam=1.0)
    centre = honest_optimum(game, coupling)
    return Scene(
        name="binary",
        users=game.users,
        model=game.model,
        loss=game.point_loss,
        coupling=coupling,
        nu=game.nu,
        centre=centre,
        target=far_target(game, centre),
        seed=seed,
        idle=idle,
    )


def digits_scene(seed: int, *, idle: bool, quick: bool) -> Scene:
    """Return ten honest users of 500 digits, lam = 1, and the target that moves every label by one.

    Quick: three users of 100 digits of 4 x 4 pixels, and the target that acts on those.
    """
    problem = build_problem(parse_config({"seed": seed, "device": "cpu"}))
    coupling, nu = SquaredL2(lam=problem.config.lam), problem.config.nu
    target = problem.target.view(problem.model.outputs, -1)
    if quick:
        drawn = [problem.source.draw(user, 100, seed) for user in range(3)]
        drawn = [UserData(augment(_coarse(user.features[:, :-1])), user.labels) for user in drawn]
        # The mean of four pixels times the sum of their weights, as if the four were equal.
        target = torch.cat([4 * _coarse(target[:, :-1]), target[:, -1:]], dim=1)
    else:
        drawn = [problem.source.draw(user, 500, seed) for user in range(10)]
    outputs, inputs = target.shape
    users = _doubles(drawn, problem.loss, outputs)
    model = Linear(inputs, outputs)
    honest = Population(users, model=model, loss=problem.loss, regularizer=coupling, nu=nu)
    return Scene(
        name="digits",
        users=users,
        model=model,
        loss=problem.loss,
        coupling=coupling,
        nu=nu,
        centre=equilibrium(honest).rho,
        target=target.reshape(-1),
        seed=seed,
        bias=True,
        idle=idle,
        warm=True,
        gap=0.05 if quick else 0.02,
    )


def _coarse(images: Tensor) -> Tensor:
    return avg_pool2d(images.reshape(-1, 1, 8, 8), 2).flatten(1)


def _doubles(users: Sequence[UserData], loss: PointLoss, classes: int) -> tuple[UserData, ...]:
    return tuple(
        UserData(user.features.double(), _distributions(user.labels, loss, classes))
        for user in users
    )


def _distributions(labels: Tensor, loss: PointLoss, classes: int) -> Tensor:
    """Return a softmax's hard labels as distributions, so that soft ones can stand beside them."""
    hard = isinstance(loss, Softmax) and labels.ndim == 1
    return one_hot(labels, classes).to(torch.float64) if hard else labels
