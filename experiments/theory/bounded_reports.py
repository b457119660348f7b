"""CGA where GRAD is a ball: a lam that decides who reaches the target, and how near others get."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from experiments.studies.study import Setting
from experiments.theory.gradient_descent import Descent
from experiments.theory.honest_users import draw_scenario
from experiments.theory.scenario import Scenario
from pfl_flower.attacks.reachable import reachable_limit
from pfl_flower.objective.regularizers import Regularizer, SquaredL2

USERS, QUICK_USERS, POINTS, DIM, NU = 4, 3, 20, 5, 0.1
ROUNDS, STILL = 3000, 1e-9
"""Runs end after so many rounds, or at a step so short."""


def unbounded(setting: Setting, loss: str) -> Scenario:
    """Draw the honest users, coupled by squared l2."""
    return draw_scenario(
        loss,
        SquaredL2(lam=1.0),
        seed=setting.seed,
        users=QUICK_USERS if setting.quick else USERS,
        points=POINTS,
        dim=DIM,
        nu=NU,
        idle=setting.control,
    )


def bounded(setting: Setting, loss: str, kind: type[Regularizer], share: float) -> Scenario:
    """Draw the honest users, and lam as a share of their summed pull at a far target."""
    scenario = unbounded(setting, loss)
    pull = scenario.pulls(scenario.target).sum(dim=0)
    return replace(scenario, regularizer=kind(lam=share * float(torch.linalg.vector_norm(pull))))


def counter_gradient(
    scenario: Scenario, attackers: int = 1, *, coalition: int = 1, rounds: int = ROUNDS
) -> Descent:
    """Run CGA users who share the correction among ``coalition``, with ``eta = 1/(3L)``.

    From the honest optimum: an idle attacker leaves rho there.
    """
    return scenario.descend(
        [scenario.counter_gradient(coalition=coalition)] * attackers,
        rounds=rounds,
        start=scenario.honest_optimum,
        tolerance=STILL,
    )


def reach(scenario: Scenario, attackers: int = 1) -> Tensor:
    """Return the limit ``(d,)`` that theory says so many attackers hold."""
    radius = attackers * scenario.regularizer.radius
    found = reachable_limit(scenario.honest, scenario.target, radius=radius)
    if not found.converged:
        raise RuntimeError(f"no reachable limit: residual {found.residual:.2g}")
    return found.rho


def share_left(scenario: Scenario, rho: Tensor) -> Tensor:
    """Return distances to the target ``(...)`` over the honest optimum's."""
    return torch.linalg.vector_norm(rho - scenario.target, dim=-1) / scenario.away
