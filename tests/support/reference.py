"""Slow implementations to test against: loops over points, autograd, general-purpose optimisers.

Nothing here imports the package, so that a mistake there cannot be repeated here unseen. What an
optimiser found is not believed: it meets its own first-order conditions, or raises ``Unproven``.
Processors differ in their last digits, and optimisers in what they make of them.
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

SMOOTHING = 5e-7
"""Most that the smoothing of l2 may leave of an entry: half of what tests allow."""


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


def miss_on_ball(slope: Tensor, point: Tensor, radius: float) -> float:
    """At most how far a point is from a ball's nearest vector to some w, ``slope = point - w``.

    The KKT conditions say so, and no solver: with ``e = slope + mu point`` for any ``mu >= 0``, the
    point is the nearest one to ``w + e`` of the ball through it. From there to w it moves by at
    most ``||e||``, and to the ball of the given radius by the difference of the radii.
    """
    norm = torch.linalg.vector_norm(point)
    mu = (-(slope @ point) / (norm**2).clamp(min=1e-300)).clamp(min=0.0)
    inside = torch.linalg.vector_norm(slope) + (norm - radius).clamp(min=0.0)
    on_the_sphere = torch.linalg.vector_norm(slope + mu * point) + (norm - radius).abs()
    return float(torch.minimum(inside, on_the_sphere))


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


class Unproven(AssertionError):
    """A reference that misses its own conditions: nothing can be tested against it."""


def minimise(function: Scalar, start: Tensor, *, tolerance: float = 1e-9) -> Tensor:
    """A minimiser of a convex function by scipy's trust region, with autograd's derivatives.

    Near the end the trust region compares values that differ by rounding alone: where it stops too
    early, Newton's method goes on, by the norm of the gradient. That norm is the proof.
    """

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
    found, slope = at(answer.x), gradient(function, at(answer.x))
    for _ in range(10):
        if float(torch.linalg.vector_norm(slope)) <= tolerance:
            return found
        found = found - torch.linalg.solve(hessian(function, found), slope)
        slope = gradient(function, found)
    raise Unproven(f"gradient {torch.linalg.vector_norm(slope):.2g}, {answer.message}")


def joint_minimum(
    users: Sequence[User],
    name: str,
    lam: float,
    *,
    attack_models: Tensor | None = None,
    attack_gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``(rho, theta)`` that minimise LOSS, by one optimiser over all of them.

    l2 is approached by ``lam sqrt(eps^2 + ||z||^2)``, whose minimiser is off by about ``eps``: the
    last tenth of eps moves it by nine times what is left.
    """
    dim = users[0].features.shape[1] * (
        int(users[0].labels.max()) + 1 if users[0].name == "softmax" else 1
    )
    point = torch.zeros((len(users) + 1, dim), dtype=torch.float64).reshape(-1)
    last = point
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

        last, point = point, minimise(objective, point, tolerance=tolerance)
    left = float((point - last).abs().max()) / 9 if name == "l2" else 0.0
    if left > SMOOTHING:
        raise Unproven(f"smoothing of l2: {left:.2g} are left")
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
