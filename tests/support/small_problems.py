"""A few honest users and a target far from their optimum, for the tests of poisoned data."""

from dataclasses import replace

import torch

from pfl_flower.attacks.equivalence import model_from_gradient, nearest_gradient
from pfl_flower.attacks.poisoning.aim import Aim
from pfl_flower.attacks.reachable import reachable_limit
from pfl_flower.objective.losses import LeastSquares, Logistic, Softmax
from pfl_flower.objective.models import Linear, augment
from pfl_flower.objective.regularizers import SmoothL2
from pfl_flower.objective.user_data import UserData
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.solvers.population import Population
from pfl_flower.support.seeding import generator

CLASSIFIERS = [Logistic(), Softmax()]


def name(value):
    return value if isinstance(value, str) else type(value).__name__


def norm(vector):
    return float(torch.linalg.vector_norm(vector))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed, *shape), dtype=torch.float64)


class SmallProblem:
    """Honest users, a far target, and what holds rho there or at the limit within reach."""

    def __init__(
        self, loss, regularizer, *, bias=True, users=3, points=30, free=4, nu=0.1, seed=0, classes=3
    ):
        self.bias, self.outputs = bias, classes if isinstance(loss, Softmax) else 1
        self.users = []
        for n in range(users):
            features = normal(points, free, seed=100 * seed + n)
            draws = generator(seed, n, "labels")
            labels = torch.randint(classes, (points,), generator=draws)
            if isinstance(loss, LeastSquares):
                labels = torch.randn(points, generator=draws, dtype=torch.float64)
            elif isinstance(loss, Logistic):
                labels = torch.where(labels > 0, 1, -1)
            self.users.append(UserData(augment(features) if bias else features, labels))
        self.settings = {
            "model": Linear(free + int(bias), self.outputs),
            "loss": loss,
            "regularizer": regularizer,
            "nu": nu,
        }
        self.honest = Population(self.users, **self.settings)
        self.centre = equilibrium(self.honest).rho
        away = normal(len(self.centre), seed=seed + 7).view(self.outputs, -1)
        # No data can hold classes that do not sum to 0 when nu > 0 pulls them there.
        away = away - away.mean(0) if self.outputs > 1 else away
        length = 1.5 * max(1.0, norm(self.centre))
        self.target = self.centre + length * torch.nn.functional.normalize(away.reshape(-1), dim=0)
        self.limit = reachable_limit(self.honest, self.target)

    def aim(self, epsilon=1e-6):
        rho, gradient = self.limit.rho, self.limit.gradient
        coupling = self.settings["regularizer"]
        spade = model_from_gradient(coupling, rho, gradient, epsilon=epsilon).value
        if isinstance(coupling, SmoothL2) and not self.limit.reached:
            # No model attains this limit. The data aim at where the model that comes within
            # epsilon of it holds rho, and hold it there exactly (Lemma 15).
            near = equilibrium(self.honest, attack_models=spade[None])
            assert norm(near.rho - rho) <= 20 * epsilon
            rho, gradient = near.rho, coupling.grad_rho(near.rho, spade)
            self.limit = replace(self.limit, rho=rho, gradient=gradient)
        return Aim(
            model=self.settings["model"],
            loss=self.settings["loss"],
            attack_model=spade,
            gradient=nearest_gradient(coupling, rho, spade, gradient),
            nu=self.settings["nu"],
            bias=self.bias,
        )

    def miss(self, data=None):
        """Relative distance of the exact equilibrium, from a cold start, to where it should be."""
        users = self.users if data is None else [*self.users, data.user()]
        found = equilibrium(Population(users, **self.settings))
        assert found.converged
        return norm(found.rho - self.limit.rho) / (1 + norm(self.limit.rho))


def aim_for(loss, *, free=4, bias=True, nu=0.1, seed=0, classes=3):
    """An aim without users: any theta_spade and gradient (classes summing to 0)."""
    outputs = classes if isinstance(loss, Softmax) else 1
    spade, gradient = (3 * normal(outputs, free + int(bias), seed=seed + k) for k in (1, 2))
    if outputs > 1:
        spade, gradient = spade - spade.mean(0), gradient - gradient.mean(0)
    return Aim(
        model=Linear(free + int(bias), outputs),
        loss=loss,
        attack_model=spade.reshape(-1),
        gradient=gradient.reshape(-1),
        nu=nu,
        bias=bias,
    )


def replace_data(data, user):
    weights = torch.ones(len(user.features), dtype=torch.float64)
    return replace(data, features=user.features, labels=user.labels, weights=weights)
