"""The games in which poisoning methods compete for labels, and what a dataset is worth in them.

A dataset is judged twice. *Equilibrium*: the exact minimiser of LOSS with the poisoned user, which
depends on the data alone. *Transient*: rho after T rounds of the paper's protocol, in which local
models take one Adam step a round and the poisoned user's starts at theta_spade plus noise
(Appendix I.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, one_hot

from experiments.theory.games import draw_game, far_target
from pfl_flower.attacks.data import (
    Aim,
    PoisonedData,
    gaussian_queries,
    indifference,
    matching,
    repeated,
    sampling,
)
from pfl_flower.config import parse_config
from pfl_flower.equilibrium import equilibrium
from pfl_flower.equivalence import honest_sum, model_from_gradient
from pfl_flower.local_steps import StepState, optimizer_step
from pfl_flower.losses import PointLoss, Softmax
from pfl_flower.models import Linear, augment
from pfl_flower.population import Population, UserData
from pfl_flower.problem import build_problem
from pfl_flower.regularizers import SquaredL2
from pfl_flower.seeding import generator
from pfl_flower.server_steps import StepSizes

LOCAL_STEPS = StepSizes(first=0.02, decay=0.99, floor=0.005)
START_NOISE = 0.1
QUERIES, NOISE = 2000, 0.01
"""The paper's number of indifferent queries, and the deviation of the noise on them."""


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
    target : Tensor
        theta_dagger, ``(d,)``.
    seed : int
        Of every draw of the attack.
    bias : bool
        Whether the last feature of a query is the constant 1.
    idle : bool
        Whether the strategic user does nothing.
    warm : bool
        Whether equilibria start at the aim rather than at 0, which is only a matter of speed.
    """

    name: str
    users: tuple[UserData, ...]
    model: Linear
    loss: PointLoss
    coupling: SquaredL2
    nu: float
    target: Tensor
    seed: int
    bias: bool = False
    idle: bool = False
    warm: bool = False

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

    @cached_property
    def centre(self) -> Tensor:
        """rho*_honest, ``(d,)``."""
        return equilibrium(self.population()).rho

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

    def held(self, aim: Aim) -> Tensor:
        """Return where an aim holds rho, ``(d,)``: ``theta_spade + g/(2 lam)``."""
        return aim.attack_model + aim.gradient / (2 * self.coupling.lam)

    def settle(self, data: PoisonedData, start: Tensor | None = None) -> tuple[Tensor, float]:
        """Return rho* of the exact equilibrium, from 0 if no start is given, and its residual."""
        found = equilibrium(self.population(*self.others(data)), start=start)
        return found.rho, max(found.residual, found.local_residual)

    def transient(self, aim: Aim, data: PoisonedData | None, rounds: int) -> Tensor:
        """Return rho_T: local Adam steps, server SGD with the automatic step, from 0.

        Both updates use rho_t and theta^t, as in the paper's experiments; the poisoned user's
        model starts at theta_spade with noise. Without data nobody is strategic.
        """
        population = self.population(*(() if data is None else self.others(data)))
        theta = torch.zeros((population.size, self.model.dim), dtype=torch.float64)
        for row in range(len(self.users), population.size):
            draw = generator(self.seed, "budget", self.name, "start")
            noise = torch.randn(self.model.dim, generator=draw, dtype=torch.float64)
            theta[row] = aim.attack_model + START_NOISE * noise
        rho, state = torch.zeros_like(self.target), StepState.init(theta)
        steps = StepSizes.auto(self.coupling, population.size)
        for round in range(1, rounds + 1):
            gradient = population.gradient(theta) - self.coupling.grad_rho(rho, theta)
            report = population.report(rho, theta).sum(dim=0)
            theta, state = optimizer_step("adam", theta, gradient, state, LOCAL_STEPS.at(round))
            rho = rho - steps.at(round) * report
        return rho


def binary_scene(seed: int, *, idle: bool) -> Scene:
    """Return ten honest users of logistic regression in ten dimensions, and a far target."""
    game = draw_game("logistic", seed=seed, users=10, points=40, dim=10, nu=0.01)
    coupling = SquaredL2(lam=1.0)
    scene = Scene(
        name="binary",
        users=game.users,
        model=game.model,
        loss=game.point_loss,
        coupling=coupling,
        nu=game.nu,
        target=torch.zeros(game.dim, dtype=torch.float64),
        seed=seed,
        idle=idle,
    )
    return replace(scene, target=far_target(game, scene.centre))


def digits_scene(seed: int, *, idle: bool, quick: bool) -> Scene:
    """Return ten honest users of 500 digits, lam = 1, and the target that moves every label by one.

    Quick: users of 100 digits of 4 x 4 pixels, and the target that acts on those.
    """
    problem = build_problem(parse_config({"seed": seed, "device": "cpu"}))
    points = 100 if quick else 500
    drawn = [problem.source.draw(user, points, seed) for user in range(10)]
    target = problem.target.view(problem.model.outputs, -1)
    if quick:
        # The mean of four pixels times the sum of their weights, as if the four were equal.
        target = torch.cat([4 * _coarse(target[:, :-1]), target[:, -1:]], dim=1)
        drawn = [UserData(augment(_coarse(user.features[:, :-1])), user.labels) for user in drawn]
    outputs, inputs = target.shape
    return Scene(
        name="digits",
        users=tuple(
            UserData(user.features.double(), _distributions(user.labels, problem.loss, outputs))
            for user in drawn
        ),
        model=Linear(inputs, outputs),
        loss=problem.loss,
        coupling=SquaredL2(lam=problem.config.lam),
        nu=problem.config.nu,
        target=target.reshape(-1),
        seed=seed,
        bias=True,
        idle=idle,
        warm=True,
    )


def _coarse(images: Tensor) -> Tensor:
    return avg_pool2d(images.view(-1, 1, 8, 8), 2).flatten(1)


def _distributions(labels: Tensor, loss: PointLoss, classes: int) -> Tensor:
    """Return a classifier's hard labels as distributions, so that soft ones can stand beside."""
    hard = isinstance(loss, Softmax) and labels.ndim == 1
    return one_hot(labels, classes).to(torch.float64) if hard else labels


Method = Callable[[Scene, float], tuple[Aim, PoisonedData]]
"""From a budget, or from the share of the way for methods that are exact, to an aim and data."""


def sampled(scene: Scene, labels: float) -> tuple[Aim, PoisonedData]:
    """Ask random queries and answer with theta_spade's labels (Theorem 3)."""
    aim, draw = scene.aim(), generator(scene.seed, "budget", scene.name, "sampling")
    queries = gaussian_queries(aim, int(labels), generator=draw)
    return aim, sampling(aim, queries, generator=draw)


def indifferent(scene: Scene, labels: float) -> tuple[Aim, PoisonedData]:
    """Ask 2,000 queries at most near the indifference subspace, with soft labels of any weight."""
    aim, draw = scene.aim(), generator(scene.seed, "budget", scene.name, "indifference")
    count = min(int(labels), QUERIES)
    queries = gaussian_queries(aim, count, generator=draw)
    weight = labels / count
    return aim, indifference(aim, queries, generator=draw, noise=NOISE, weight=weight)


def matched(scene: Scene, share: float) -> tuple[Aim, PoisonedData]:
    """Design the least weight that holds rho part of the way."""
    aim, draw = scene.aim(share), generator(scene.seed, "budget", scene.name, "matching")
    return aim, matching(aim, generator=draw)


def repetition(scene: Scene, share: float) -> tuple[Aim, PoisonedData]:
    """Repeat one query that holds rho part of the way."""
    aim = scene.aim(share)
    return aim, repeated(aim)
