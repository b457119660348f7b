"""Tables and small problems that several tests share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pfl_flower.objective import losses, table
from pfl_flower.objective.local_loss import LocalLoss, Reduction
from pfl_flower.objective.models import Linear
from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.objective.user_data import UserData
from pfl_flower.solvers.population import Population
from pfl_flower.solvers.proximal import ProximalSolver, Solution
from tests.support import reference

DTYPE = torch.float64
STRENGTHS = [0.01, 1.0, 30.0]


def build(name: str, lam: float = 1.5) -> Regularizer:
    return table.REGULARIZERS.load(name)(lam=lam)


def close(got: Tensor, expected: Tensor, rtol: float = 1e-7, atol: float = 1e-7) -> None:
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


@dataclass(frozen=True)
class LossCase:
    """A row of the table of losses: name in the package, number of scores, kind of labels."""

    name: str
    outputs: int = 1
    soft: bool = False


REGULARIZERS = [pytest.param(name, id=name) for name in table.REGULARIZERS]
LOSSES = [
    pytest.param(LossCase("least-squares"), id="least-squares"),
    pytest.param(LossCase("logistic"), id="logistic"),
    pytest.param(LossCase("softmax", outputs=3), id="softmax"),
]
SOFT_LOSSES = [pytest.param(LossCase("softmax", outputs=3, soft=True), id="softmax-soft")]


def generator(seed: int) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: torch.Generator) -> Tensor:
    """Standard normal draws in float64."""
    return torch.randn(*shape, generator=seed, dtype=DTYPE)


def draw_labels(case: LossCase, *shape: int, seed: torch.Generator) -> Tensor:
    """Random labels of the kind that the loss expects; every class occurs."""
    if case.name == "least-squares":
        return normal(*shape, seed=seed)
    if case.name == "logistic":
        return 1.0 - 2.0 * torch.randint(0, 2, shape, generator=seed).to(DTYPE)
    if case.soft:
        return torch.softmax(normal(*shape, case.outputs, seed=seed), dim=-1)
    labels = torch.randint(0, case.outputs, shape, generator=seed)
    labels[..., : case.outputs] = torch.arange(case.outputs)[: shape[-1]]
    return labels


def local_loss(
    case: LossCase,
    *,
    seed: torch.Generator,
    users: int = 2,
    points: int = 5,
    inputs: int = 3,
    nu: float = 0.3,
    weighted: bool = False,
    reduction: Reduction = "sum",
) -> LocalLoss:
    """A random local loss with a linear model."""
    return LocalLoss.build(
        Linear(inputs, case.outputs),
        losses.LOSSES[case.name](),
        normal(users, points, inputs, seed=seed),
        draw_labels(case, users, points, seed=seed),
        weights=torch.rand((users, points), generator=seed, dtype=DTYPE) + 0.5
        if weighted
        else None,
        nu=nu,
        reduction=reduction,
    )


def small_users(
    case: LossCase, *, sizes: Sequence[int], inputs: int = 2, seed: torch.Generator
) -> list[UserData]:
    """Users who disagree: each draws its own features and labels."""
    return [
        UserData(normal(size, inputs, seed=seed), draw_labels(case, size, seed=seed))
        for size in sizes
    ]


def population(
    users: Sequence[UserData], case: LossCase, regularizer: str, *, lam: float, nu: float
) -> Population:
    """The users as a population with a linear model."""
    return Population(
        users,
        model=Linear(users[0].features.shape[1], case.outputs),
        loss=losses.LOSSES[case.name](),
        regularizer=table.REGULARIZERS.load(regularizer)(lam=lam),
        nu=nu,
    )


def small_population(
    case: LossCase,
    regularizer: str,
    *,
    seed: torch.Generator,
    users: int = 3,
    lam: float = 1.0,
    nu: float = 0.3,
) -> tuple[Population, list[reference.User]]:
    """A population of users of unequal sizes and the same problem in the reference's words."""
    data = small_users(case, sizes=[5 + 2 * user for user in range(users)], seed=seed)
    return population(data, case, regularizer, lam=lam, nu=nu), [
        reference.User(case.name, user.features, user.labels, nu) for user in data
    ]


@dataclass(frozen=True)
class Problem:
    """A proximal problem: one batch of users, a coupling, and where to solve it from."""

    loss: LocalLoss
    regularizer: Regularizer
    rho: Tensor
    start: Tensor

    def solve(self, **options: float) -> Solution:
        solver = ProximalSolver(self.loss, self.regularizer, **options)
        return solver.solve(self.rho, self.start)

    def objective(self, case: LossCase, user: int, theta: Tensor) -> Tensor:
        """What user ``user`` minimises, by torch's own losses."""
        reference_user = reference.User(
            case.name, self.loss.features[user], self.loss.labels[user], self.loss.nu
        )
        name = next(
            n
            for n in table.REGULARIZERS
            if isinstance(self.regularizer, table.REGULARIZERS.load(n))
        )
        pull = reference.coupling(name, self.regularizer.lam, self.rho, theta)
        return reference_user.loss(theta) + pull


def draw(
    case: LossCase,
    name: str,
    seed: int,
    *,
    users: int = 2,
    points: int = 12,
    inputs: int = 3,
    lam: float = 0.7,
    nu: float = 0.05,
    size: float = 1.0,
    far: float = 3.0,
) -> Problem:
    """A random problem: features of scale ``size``, a start at distance ``far`` from rho."""
    source = generator(seed)
    loss = local_loss(case, users=users, points=points, inputs=inputs, nu=nu, seed=source)
    rho = normal(loss.model.dim, seed=source)
    start = rho + far * normal(users, loss.model.dim, seed=source)
    loss = LocalLoss.build(loss.model, loss.loss, size * loss.features, loss.labels, nu=nu)
    return Problem(loss, table.REGULARIZERS.load(name)(lam=lam), rho, start)
