"""Where poisoning methods compete for labels: logistic regression, and the digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, one_hot

from experiments.theory.honest_users import draw_scenario
from experiments.theory.scenario import Scenario
from pfl_flower.attacks.poisoning.aim import PoisonedData
from pfl_flower.objective.models import augment
from pfl_flower.objective.regularizers import SquaredL2
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import build_problem
from pfl_flower.solvers.proximal import DEFAULT_TOLERANCE


def binary_scenario(seed: int, *, idle: bool) -> Scenario:
    """Return ten honest users of logistic regression in ten dimensions, and a far target."""
    scenario = draw_scenario(
        "logistic",
        SquaredL2(lam=1.0),
        seed=seed,
        users=10,
        points=40,
        dim=10,
        nu=0.01,
        idle=idle,
    )
    return replace(scenario, name="binary")


def digits_scenario(seed: int, *, idle: bool, quick: bool) -> Scenario:
    """Return ten honest users of 500 digits, lam = 1, and the target that moves every label by one.

    Quick: three users of 100 digits of 4 x 4 pixels, and the target that acts on those.
    """
    problem = build_problem(parse_config({"seed": seed, "device": "cpu"}))
    target = problem.target.view(problem.model.outputs, -1)
    if quick:
        drawn = [problem.source.draw(user, 100, seed) for user in range(3)]
        drawn = [UserData(augment(_coarse(user.features[:, :-1])), user.labels) for user in drawn]
        # The mean of four pixels times the sum of their weights, as if the four were equal.
        target = torch.cat([4 * _coarse(target[:, :-1]), target[:, -1:]], dim=1)
    else:
        drawn = [problem.source.draw(user, 500, seed) for user in range(10)]
    return Scenario(
        name="digits",
        loss="softmax",
        users=_in_double(drawn, len(target)),
        regularizer=SquaredL2(lam=problem.config.lam),
        nu=problem.config.nu,
        chosen=target.reshape(-1),
        outputs=len(target),
        bias=True,
        seed=seed,
        idle=idle,
        tolerance=DEFAULT_TOLERANCE,
    )


def poisoned_user(scenario: Scenario, data: PoisonedData) -> tuple[UserData, ...]:
    """Return the strategic user with its data, in a tuple; nobody if it is idle."""
    if scenario.idle:
        return ()
    labels = data.labels
    if scenario.loss == "softmax":
        labels = _distributions(labels, scenario.outputs)
    return (UserData(data.features, labels, data.weights),)


def _coarse(images: Tensor) -> Tensor:
    return avg_pool2d(images.reshape(-1, 1, 8, 8), 2).flatten(1)


def _in_double(users: Sequence[UserData], classes: int) -> tuple[UserData, ...]:
    return tuple(
        UserData(user.features.double(), _distributions(user.labels, classes)) for user in users
    )


def _distributions(labels: Tensor, classes: int) -> Tensor:
    """Return a softmax's hard labels as distributions, so that soft ones can stand beside them."""
    return one_hot(labels, classes).to(torch.float64) if labels.ndim == 1 else labels
