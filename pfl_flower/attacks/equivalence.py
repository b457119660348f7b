"""The chain gradient -> model -> gradient, each step with its residual (Sections 3.2 and 5).

A gradient attack that converges to g holds rho where

    sum_n grad_rho R(rho, theta_n(rho)) + g = 0        (honest users n, exact responses)

and so does a model attack with ``g`` in the subdifferential of ``R(., theta_spade)`` at rho. The
last step, model -> data, is in ``pfl_flower.attacks.poisoning``: data whose local optimum is
theta_spade, which is ``grad L_s(theta_spade, D_s) = g``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.objective.vectors import norm
from pfl_flower.solvers.population import Population

BOUNDARY = 1e-6
"""Error in a gradient on a boundary that no model attains. The model is ``sqrt(lam/(2 epsilon))``
away, 700 for lam = 1: a hundredth of the error puts it ten times farther, where solves lose digits.
"""


@dataclass(frozen=True)
class Conversion:
    """What a conversion returned, and by how much it misses what was asked.

    Attributes
    ----------
    value : Tensor
        A gradient or a model, ``(d,)``.
    residual : float
        Euclidean norm of what is left of the condition, recomputed from ``value``.
    """

    value: Tensor
    residual: float


def nearest_gradient(
    regularizer: Regularizer, rho: Tensor, theta: Tensor, gradient: Tensor
) -> Tensor:
    """Return the (sub)gradient of ``R(., theta)`` at rho, ``(d,)``, that is nearest to gradient.

    Where R is differentiable there is only ``grad_rho R(rho, theta)``; at a kink ``rho = theta``
    it is the projection on the ball ``B(0, phi'(0+))``.
    """
    if regularizer.kink > 0 and bool((rho == theta).all()):
        # A gradient inside the ball is left as it is, to the bit.
        size = norm(gradient)
        return gradient * (regularizer.kink / size.clamp(min=regularizer.kink))
    return regularizer.grad_rho(rho, theta)


def model_from_gradient(
    regularizer: Regularizer, target: Tensor, gradient: Tensor, *, epsilon: float = BOUNDARY
) -> Conversion:
    """Return theta_spade with ``grad_rho R(target, theta_spade) = gradient``.

    Squared l2: ``theta_spade = target - g/(2 lam)`` (Proposition 3). L2: ``target - g/||g||`` on
    the sphere, and ``target`` inside it, where g is a subgradient. Smooth l2: ``target -
    g/sqrt(lam^2 - ||g||^2)`` inside the ball; no model attains its boundary, so a g within epsilon
    of it becomes ``(lam - epsilon) g/||g||`` (Lemma 15: GRAD is a closure). A smaller epsilon costs
    a farther model, ``||target - theta_spade|| ~ sqrt(lam/(2 epsilon))``.

    Parameters
    ----------
    regularizer : Regularizer
        The coupling R.
    target, gradient : Tensor
        Where the gradient attack holds rho, and the gradient g_inf it converged to, ``(d,)``.
    epsilon : float
        Largest error in the gradient, used at a boundary that no model attains.

    Returns
    -------
    Conversion
        The model and ``||g' - g||``, g' the subgradient at the target nearest to g.

    Raises
    ------
    UnattainableGradientError
        If the gradient is outside GRAD(target), or at a boundary with ``epsilon = 0``.
    """
    wanted = gradient
    radius = gradient.new_tensor(regularizer.radius)
    if not bool(regularizer.attains(radius)) and bool(regularizer.contains(gradient)):
        # Within epsilon of the sphere, or on it as far as rounding tells, it is drawn inside.
        size = norm(gradient)
        # Of a ball smaller than epsilon half will do: never through 0 to the other side.
        inner = (radius - epsilon).clamp(min=radius / 2)
        wanted = gradient * (inner / size) if bool(size > inner) else gradient
    model = regularizer.attain(target, wanted)
    attained = nearest_gradient(regularizer, target, model, gradient)
    return Conversion(model, float(torch.linalg.vector_norm(attained - gradient)))


def gradient_from_model(
    regularizer: Regularizer, rho: Tensor, attack_model: Tensor, others: Tensor
) -> Conversion:
    """Return the gradient that a model attack amounts to where it holds rho (Lemma 3's converse).

    Parameters
    ----------
    regularizer : Regularizer
        The coupling R.
    rho, attack_model : Tensor
        The limit of the model attack and theta_spade, ``(d,)``.
    others : Tensor
        Sum ``(d,)`` of everyone else's gradients at rho, see ``honest_sum``.

    Returns
    -------
    Conversion
        The element g of the subdifferential of ``R(., theta_spade)`` at rho nearest to
        ``-others``, and ``||others + g||``: 0 if and only if rho is an equilibrium.
    """
    gradient = nearest_gradient(regularizer, rho, attack_model, -others)
    return Conversion(gradient, float(torch.linalg.vector_norm(others + gradient)))


def honest_sum(population: Population, rho: Tensor, *, start: Tensor | None = None) -> Conversion:
    """Return ``sum_n grad_rho R(rho, theta_n(rho))``, theta_n(rho) the exact local optima.

    At the target its opposite is the gradient limit of every attack that holds rho there: a
    source of g_inf that needs no run.

    Parameters
    ----------
    population : Population
        The users who solve their local problems exactly.
    rho : Tensor
        Global model, ``(d,)``.
    start : Tensor, optional
        Local models ``(k, d)`` to start from; ``rho`` when absent.

    Returns
    -------
    Conversion
        The sum ``(d,)`` and the worst first-order residual of the local problems.
    """
    start = rho.expand(population.size, -1) if start is None else start
    solution = population.solve(rho, start)
    total = population.report(rho, solution.theta).sum(dim=0)
    return Conversion(total, float(solution.residual.max()))
