"""Slow implementations to test against: loops over points, autograd, general-purpose optimisers.

Nothing here imports the package, so that a mistake there cannot be repeated here unseen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from torch import Tensor
from torch.autograd.functional import hessian
from torch.nn import functional

Scalar = Callable[[Tensor], Tensor]


def point_loss(name: str, scores: Sequence[float], label: float | int | Sequence[float]) -> float:
    """Loss of one point, in Python floats; a sequence as label is a distribution over classes."""
    if name == "least-squares":
        return 0.5 * (scores[0] - label) ** 2
    if name == "logistic":
        return -math.log(1 / (1 + math.exp(-label * scores[0])))
    if name != "softmax":
        raise KeyError(name)
    soft = label if isinstance(label, Sequence) else [float(c == label) for c in range(len(scores))]
    total = sum(math.exp(score) for score in scores)
    return -sum(
        y * math.log(math.exp(score) / total) for y, score in zip(soft, scores, strict=True)
    )


def user_loss(
    name: str,
    theta: Tensor,
    features: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    nu: float,
    reduction: str,
) -> float:
    """Equation 3 for one user with a linear model, ``theta = vec(W)`` row by row."""
    inputs = features.shape[1]
    outputs = len(theta) // inputs
    total = 0.0
    for x, label, weight in zip(features.tolist(), labels.tolist(), weights.tolist(), strict=True):
        scores = [
            sum(float(theta[c * inputs + j]) * x[j] for j in range(inputs)) for c in range(outputs)
        ]
        total += weight * point_loss(name, scores, label)
    if reduction == "mean":
        total /= sum(weights.tolist())
    return total + nu * sum(float(t) ** 2 for t in theta)


def coupling(name: str, lam: float, rho: Tensor, theta: Tensor, eps: float = 0.0) -> Tensor:
    """``R(rho, theta)`` of two vectors; ``eps`` rounds off the tip of l2."""
    square = ((rho - theta) ** 2).sum()
    if name == "squared-l2":
        return lam * square
    if name == "l2":
        return lam * torch.sqrt(square + eps**2)
    if name == "smooth-l2":
        return lam * torch.sqrt(1 + square)
    raise KeyError(name)


def grad_radius(name: str, lam: float) -> float:
    """Radius of GRAD, from the table in the paper."""
    return {"squared-l2": math.inf, "l2": lam, "smooth-l2": lam}[name]


def project(name: str, lam: float, gradient: Tensor) -> Tensor:
    """Nearest vector of GRAD, by a constrained optimiser that knows nothing of balls."""
    radius = grad_radius(name, lam)
    if math.isinf(radius):
        return gradient
    goal = gradient.numpy()
    answer = scipy.optimize.minimize(
        lambda x: 0.5 * np.sum((x - goal) ** 2),
        np.zeros_like(goal),
        jac=lambda x: x - goal,
        constraints={
            "type": "ineq",
            "fun": lambda x: radius**2 - np.sum(x**2),
            "jac": lambda x: -2 * x,
        },
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return torch.from_numpy(answer.x)


def central_difference(function: Scalar, point: Tensor, step: float = 1e-5) -> Tensor:
    """Derivative of ``function`` in every coordinate of ``point``; shape ``(*value, *point)``."""
    columns = []
    for index in range(point.numel()):
        shift = torch.zeros_like(point).reshape(-1)
        shift[index] = step
        shift = shift.reshape(point.shape)
        columns.append((function(point + shift) - function(point - shift)) / (2 * step))
    derivative = torch.stack(columns, dim=-1)
    return derivative.reshape(*derivative.shape[:-1], *point.shape)


@dataclass(frozen=True)
class User:
    """One user's problem with a linear model, as torch's own losses see it (for autograd)."""

    name: str
    features: Tensor
    labels: Tensor
    nu: float

    def loss(self, theta: Tensor) -> Tensor:
        """``L(theta)``."""
        scores = self.features @ theta.reshape(-1, self.features.shape[1]).T
        if self.name == "least-squares":
            data = 0.5 * functional.mse_loss(scores[:, 0], self.labels, reduction="sum")
        elif self.name == "logistic":
            zero_one = (self.labels + 1) / 2
            data = functional.binary_cross_entropy_with_logits(
                scores[:, 0], zero_one, reduction="sum"
            )
        elif self.name == "softmax":
            data = functional.cross_entropy(scores, self.labels, reduction="sum")
        else:
            raise KeyError(self.name)
        return data + self.nu * theta @ theta


def gradient(function: Scalar, point: Tensor) -> Tensor:
    """Autograd's gradient."""
    leaf = point.detach().clone().requires_grad_()
    (answer,) = torch.autograd.grad(function(leaf), leaf)
    return answer


def minimise(function: Scalar, start: Tensor, *, tolerance: float = 1e-9) -> Tensor:
    """A minimiser by scipy's trust region, with autograd's gradient and Hessian."""

    def at(x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(x))

    answer = scipy.optimize.minimize(
        lambda x: float(function(at(x))),
        start.numpy(),
        jac=lambda x: gradient(function, at(x)).numpy(),
        hess=lambda x: hessian(function, at(x), vectorize=True).numpy(),
        method="trust-exact",
        options={"gtol": tolerance, "maxiter": 2000},
    )
    return torch.from_numpy(answer.x)


def joint_minimum(
    users: Sequence[User],
    name: str,
    lam: float,
    *,
    attack_models: Tensor | None = None,
    attack_gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``(rho, theta)`` that minimise LOSS, by one optimiser over all of them.

    l2 is approached by ``lam sqrt(eps^2 + ||z||^2)``, whose minimiser is off by about ``eps``.
    """
    dim = users[0].features.shape[1] * (
        int(users[0].labels.max()) + 1 if users[0].name == "softmax" else 1
    )
    point = torch.zeros((len(users) + 1, dim), dtype=torch.float64).reshape(-1)
    for eps in (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7) if name == "l2" else (0.0,):
        tolerance = 1e-4 if eps > 1e-7 else 1e-8

        def objective(flat: Tensor, eps: float = eps) -> Tensor:
            rho, *thetas = flat.reshape(-1, dim)
            total = torch.zeros((), dtype=torch.float64)
            for user, theta in zip(users, thetas, strict=True):
                total = total + user.loss(theta) + coupling(name, lam, rho, theta, eps)
            for model in () if attack_models is None else attack_models:
                total = total + coupling(name, lam, rho, model, eps)
            return total if attack_gradient is None else total + attack_gradient @ rho

        point = minimise(objective, point, tolerance=tolerance)
    rho, *thetas = point.reshape(-1, dim)
    return rho, torch.stack(thetas)


def federated(
    users: Sequence[User], name: str, lam: float, rho: Tensor, *, eta: float, rounds: int
) -> list[Tensor]:
    """``rho_0 .. rho_rounds`` of honest federated gradient descent, one user after another."""
    trajectory = [rho]
    for _ in range(rounds):
        total = torch.zeros_like(rho)
        for user in users:
            theta = minimise(
                lambda t, user=user, rho=rho: user.loss(t) + coupling(name, lam, rho, t),
                rho + 0.1,
                tolerance=1e-10,
            )
            total = total + gradient(lambda r, theta=theta: coupling(name, lam, r, theta), rho)
        rho = rho - eta * total
        trajectory.append(rho)
    return trajectory
