"""The minimiser of LOSS for models too large for dense Hessians: L-BFGS over rho and all theta."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from pfl_flower.equilibrium import Equilibrium
from pfl_flower.population import Population

MEMORY = 30
"""Pairs of steps and gradients from which L-BFGS builds its curvature."""


def joint_minimum(
    population: Population,
    *,
    attack_models: Tensor | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 2000,
    watch: Callable[[int, float], None] | None = None,
) -> Equilibrium:
    """Minimise LOSS (Equation 1), or its form under model attacks (Equation 38), by L-BFGS.

    One evaluation costs one pass over all data. Where ``nu = 0`` and the data are nearly separable
    the minimum is flat and the last digits take long: judge by the residual.

    Parameters
    ----------
    population : Population
        Honest and poisoned users, under a differentiable regulariser.
    attack_models : Tensor, optional
        Models ``(m, d)`` that strategic users pretend to hold.
    start : Tensor, optional
        First rho and local models, ``(d,)``; 0 when absent.
    tolerance : float
        On the norm of the gradient in (rho, theta), relative to its norm at the start.
    max_iterations : int
        Most steps.
    watch : callable, optional
        Told the number of steps and the norm of the gradient after each step.

    Returns
    -------
    Equilibrium
        ``residual`` is the gradient's norm in rho, ``local_residual`` the largest in a theta_n.

    Raises
    ------
    ValueError
        If the regulariser has a kink, where L-BFGS has no gradient to follow.
    """
    regularizer, dim = population.regularizer, population.model.dim
    if regularizer.kink > 0:
        raise ValueError("regularizer: expected a differentiable one")
    zero = torch.zeros(dim, dtype=population.dtype, device=population.device)
    rho = zero if start is None else start
    shape = (population.size + 1, dim)

    def gradients(point: Tensor) -> tuple[float, Tensor]:
        rho, theta = point[0], point[1:]
        local, slopes = population.value_and_gradient(theta)
        value = (local + regularizer.value(rho, theta)).sum()
        pull = regularizer.grad_rho(rho, theta)
        shared = pull.sum(dim=0)
        if attack_models is not None:
            value = value + regularizer.value(rho, attack_models).sum()
            shared = shared + regularizer.grad_rho(rho, attack_models).sum(dim=0)
        return float(value), torch.cat([shared[None], slopes - pull])

    steps, norm = 0, 0.0

    def evaluate(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal norm
        point = torch.from_numpy(flat).view(shape).to(rho)
        value, gradient = gradients(point)
        norm = float(torch.linalg.vector_norm(gradient))
        return value, gradient.double().cpu().numpy().reshape(-1)

    def after(flat: NDArray[np.float64]) -> None:
        nonlocal steps
        steps += 1
        if watch is not None:
            # A step ends with the evaluation of the point that it accepts.
            watch(steps, norm)

    first = rho.expand(shape).double().cpu().numpy().reshape(-1).copy()
    goal = tolerance * float(np.linalg.norm(evaluate(first)[1]))
    found = minimize(
        evaluate,
        first,
        jac=True,
        method="L-BFGS-B",
        callback=after if watch is not None else None,
        options={
            "maxcor": MEMORY,
            "maxiter": max_iterations,
            "maxfun": 2 * max_iterations,
            "ftol": 0.0,
            # The largest entry: a bound on it that keeps the norm within the goal.
            "gtol": goal / np.sqrt(first.size),
        },
    )
    point = torch.from_numpy(found.x).view(shape).to(rho)
    norms = torch.linalg.vector_norm(gradients(point)[1], dim=1)
    local = float(norms[1:].max())
    good = float(torch.linalg.vector_norm(norms)) <= goal
    return Equilibrium(point[0], point[1:], float(norms[0]), local, int(found.nit), good)
