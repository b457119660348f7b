"""Lemma 15: a gradient on the sphere of GRAD, which no model attains, and models close to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from experiments.studies.power_law import exponent
from experiments.theory.attacks_compared import exact_data, with_and_without
from experiments.theory.scenario import Scenario, relative
from pfl_flower.attacks.equivalence import honest_sum, model_from_gradient
from pfl_flower.attacks.reachable import reachable_limit
from pfl_flower.solvers.population import Population


def models_near_the_sphere(scenario: Scenario, epsilons: Sequence[float]) -> dict[str, float]:
    """Follow CGA's limit on the sphere of GRAD, which models attain to within epsilon only."""
    coupling = scenario.regularizer
    expected, (run, tried) = (
        reachable_limit(scenario.honest, scenario.target),
        with_and_without(scenario),
    )
    curvature = _curvature(scenario.honest, run.limit)
    misses, bounds, gaps = [], [], []
    for epsilon in epsilons:
        spade = model_from_gradient(
            coupling, run.limit, run.reports[-1, 0], epsilon=epsilon * coupling.lam
        )
        near = scenario.settle(model=spade.value)
        held = scenario.attempt(model=spade.value)
        data = exact_data(scenario.aim(near.rho, spade.value))
        gaps.append(relative(scenario.attempt(data.user()).rho, near.rho))
        misses.append(float(torch.linalg.vector_norm(held.rho - run.limit)))
        bounds.append(misses[-1] * curvature / spade.residual)
    return {
        "outside limit": relative(tried.limit, expected.rho),
        "outside miss": relative(expected.rho, scenario.target),
        "outside exponent": abs(exponent(epsilons, misses) - 1),
        "outside bound": max(bounds),
        "outside data": max(gaps),
    }


def _curvature(population: Population, rho: Tensor) -> float:
    """Return the least eigenvalue of the honest envelope's Hessian, by central differences."""
    step = 1e-5
    rows = [
        honest_sum(population, rho + step * axis).value
        - honest_sum(population, rho - step * axis).value
        for axis in torch.eye(len(rho), dtype=rho.dtype)
    ]
    hessian = torch.stack(rows) / (2 * step)
    return float(torch.linalg.eigvalsh((hessian + hessian.T) / 2)[0])
