"""Small games for the theory: honest users who disagree, and a target far from their optimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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


@dataclass(frozen=True, kw_only=True)
class Game:
    """Honest users of least squares or logistic regression in ``dim`` dimensions, without bias.

    Attributes
    ----------
    loss : str
        ``least-squares`` or ``logistic``.
    users : tuple of UserData
        Honest users: standard normal queries, which span R^d where there are at least d of them,
        answered by a model of the user's own, with noise.
    nu : float
        Local regularisation.
    seed : int
        Of all that was drawn.
    """

    loss: str
    users: tuple[UserData, ...]
    nu: float
    seed: int

    @property
    def dim(self) -> int:
        """Dimension d of the models."""
        return self.users[0].features.shape[1]

    @property
    def model(self) -> Linear:
        """Linear model with one score."""
        return Linear(self.dim, 1)

    @property
    def point_loss(self) -> PointLoss:
        """The loss per point."""
        loss: PointLoss = LOSSES[self.loss]()
        return loss

    def population(self, regularizer: Regularizer, *others: UserData) -> Population:
        """Return the honest users, then others: poisoned or adversarial."""
        return Population(
            [*self.users, *others],
            model=self.model,
            loss=self.point_loss,
            regularizer=regularizer,
            nu=self.nu,
            tolerance=SOLVED,
            max_iterations=200,
        )

    def aim(self, regularizer: Regularizer, rho: Tensor, attack_model: Tensor) -> Aim:
        """Return what poisoned data must achieve to hold rho with theta_spade."""
        return Aim.at(
            regularizer, rho, attack_model, model=self.model, loss=self.point_loss, nu=self.nu
        )


def draw_game(
    loss: str,
    *,
    seed: int,
    users: int = 5,
    points: int = 40,
    dim: int = 5,
    nu: float = 0.1,
    spread: float = 0.5,
    noise: float = 0.1,
) -> Game:
    """Return users whose preferred models are a common standard normal one plus ``spread`` noise.

    ``noise`` is the standard deviation of a regression's answers; the labels of logistic
    regression are drawn from the preferred model's probabilities.
    """
    draw = generator(seed, "game", loss, users, points, dim)
    common = _normal(dim, draw=draw)
    data = []
    for _ in range(users):
        preferred = common + spread * _normal(dim, draw=draw)
        queries = _normal(points, dim, draw=draw)
        data.append(UserData(queries, answers(loss, queries, preferred, draw=draw, noise=noise)))
    return Game(loss=loss, users=tuple(data), nu=nu, seed=seed)


def answers(
    loss: str, queries: Tensor, preferred: Tensor, *, draw: torch.Generator, noise: float = 0.1
) -> Tensor:
    """Return the answers ``(n,)`` of an honest user who prefers a model ``(d,)``."""
    scores = queries @ preferred
    if loss == "least-squares":
        return scores + noise * _normal(len(queries), draw=draw)
    uniform = torch.rand(len(queries), generator=draw, dtype=torch.float64)
    return torch.where(uniform < torch.sigmoid(scores), 1.0, -1.0).to(torch.float64)


def honest_optimum(game: Game, regularizer: Regularizer) -> Tensor:
    """Return rho*_honest, ``(d,)``: where the honest users settle among themselves."""
    found = equilibrium(game.population(regularizer))
    if not found.converged:
        raise RuntimeError(f"no honest optimum: residual {found.residual:.2g}")
    return found.rho


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


def far_target(game: Game, centre: Tensor, *, factor: float = 1.5) -> Tensor:
    """Return a target at ``factor max(1, ||centre||)`` from the honest optimum ``centre``."""
    direction = _normal(len(centre), draw=generator(game.seed, "target", game.loss))
    length = factor * max(1.0, float(torch.linalg.vector_norm(centre)))
    return centre + length * torch.nn.functional.normalize(direction, dim=0)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Return ``||found - wanted|| / (1 + ||wanted||)``."""
    miss = torch.linalg.vector_norm(found - wanted)
    return float(miss / (1 + torch.linalg.vector_norm(wanted)))


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent of a power law fitted in log-log scale by least squares."""
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x))


def _normal(*shape: int, draw: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float64)
