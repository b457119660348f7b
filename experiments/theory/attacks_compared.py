"""Theorem 1's scenario, and the attacks upon it that are to end alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from experiments.studies.study import Setting
from experiments.theory.gradient_descent import Descent, GradientSequence
from experiments.theory.honest_users import draw_scenario
from experiments.theory.scenario import Scenario
from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData, gaussian_queries
from pfl_flower.attacks.poisoning.repeated import repeated
from pfl_flower.attacks.poisoning.sampling import sampling
from pfl_flower.attacks.poisoning.single_point import single_point
from pfl_flower.objective.losses import LeastSquares
from pfl_flower.objective.regularizers import SmoothL2, SquaredL2
from pfl_flower.support.seeding import generator

LAM = 10.0
"""Strength of squared l2; that of smooth l2 depends on what the target takes."""
REACHED, MISSED = 2.0, 0.05
"""Strength of smooth l2 over ``sum_n ||grad L_n(target)||``: enough for the target, or not."""
NOISE = 1.0
"""Standard deviation of the answers in a regression's sampled data."""
ROUNDS, STILL = 5000, 1e-12
"""Gradient attacks end after so many rounds, or at a step so short."""


def few_honest_users(
    setting: Setting, loss: str, regularizer: str, share: float = REACHED
) -> Scenario:
    """Draw three honest users of ten points: few, so that theta_spade stays moderate.

    The target is the one of squared l2, whatever the regulariser.
    """
    squared = draw_scenario(
        loss,
        SquaredL2(lam=LAM),
        seed=setting.seed,
        users=3,
        points=10,
        dim=4,
        nu=0.5,
        idle=setting.control,
    )
    scenario = replace(squared, name=f"{loss}/{regularizer}", chosen=squared.target)
    if regularizer == "smooth-l2":
        most = torch.linalg.vector_norm(scenario.pulls(scenario.target), dim=1).sum()
        scenario = replace(scenario, regularizer=SmoothL2(lam=share * float(most)))
    return scenario


def attacking(scenario: Scenario) -> Scenario:
    """Return the scenario in which the strategic user attacks, in the control too."""
    return replace(scenario, idle=False) if scenario.idle else scenario


def counter_gradient(scenario: Scenario) -> Descent:
    """Run CGA with the step size that Theorem 4 covers; in the control nothing, faster."""
    eta = 1 / scenario.smoothness(constant=False) if scenario.idle else None
    attack = scenario.counter_gradient()
    return scenario.descend([attack], eta=eta, rounds=ROUNDS, tolerance=STILL)


def with_and_without(scenario: Scenario) -> tuple[Descent, Descent]:
    """Return CGA's run, and in the control the honest users' beside it."""
    run = counter_gradient(attacking(scenario))
    return run, counter_gradient(scenario) if scenario.idle else run


def gradient_sequence(scenario: Scenario, gradients: Callable[[int], Tensor]) -> Descent:
    """Run an attack that sends given gradients, or nothing in the control."""
    eta = 1 / scenario.smoothness(constant=False)
    attack = GradientSequence(gradients)
    return scenario.descend([attack], eta=eta, rounds=ROUNDS, tolerance=STILL)


def exact_data(aim: Aim) -> PoisonedData:
    """Return data that meet the aim exactly: Theorem 5's point, or one repeated query."""
    if isinstance(aim.loss, LeastSquares):
        return single_point(aim)
    return repeated(aim, integer=True)


def sampled_data(scenario: Scenario, aim: Aim, size: int, draw: int) -> PoisonedData:
    """Return standard normal queries answered by theta_spade."""
    source = generator(scenario.seed, "thm1", scenario.name, size, draw)
    queries = gaussian_queries(aim, size, generator=source)
    return sampling(aim, queries, generator=source, noise=NOISE)
