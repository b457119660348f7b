"""Two orders of summation part ways under Adam at entries whose gradient is all rounding, alone.

Adam's first step is ``lr g / (|g| + eps)``: where ``|g|`` is 1e-12 in place of 0, it moves by
``lr |g| / eps``, and by another length for other rounding. Of MNIST's first gradients one entry in
78,500 is so.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import Softmax
from pfl_flower.objective.models import Linear
from pfl_flower.solvers.optimizer_steps import StepState, adam_step, sgd_step
from tests.support import problems

CLASSES, EACH, INPUTS, EVEN = 10, 60, 12, 3
EPS, STEPS = 1e-8, 30
"""Of Adam; steps of a course."""

Gradient = Callable[[Tensor], Tensor]


def gradients() -> tuple[Gradient, Gradient]:
    """Return the gradient of one user's sum, of its points in two orders.

    Every class has the same values of feature ``EVEN``: at theta = 0 its gradient is 0.
    """
    draw = problems.generator(11)
    features = problems.normal(CLASSES, EACH, INPUTS, seed=draw)
    features[..., EVEN] = features[:1, :, EVEN]
    features, labels = features.view(-1, INPUTS), torch.arange(CLASSES).repeat_interleave(EACH)
    ways = []
    for _ in range(2):
        order = torch.randperm(len(labels), generator=draw)
        points = features[order][None], labels[order][None]
        ways.append(LocalLoss.build(Linear(INPUTS, CLASSES), Softmax(), *points, nu=0.1).gradient)
    return ways[0], ways[1]


def course(gradient: Gradient, *, adam: bool, without: Tensor | None = None) -> list[Tensor]:
    """Return theta after each step; of the first gradient the entries ``without`` are put at 0."""
    theta = torch.zeros((1, CLASSES * INPUTS), dtype=torch.float64)
    state, found = StepState.init(theta), []
    for step in range(STEPS):
        slope = gradient(theta)
        if without is not None and step == 0:
            slope = slope.masked_fill(without, 0.0)
        if adam:
            theta, state = adam_step(theta, slope, state, 0.02)
        else:
            theta = sgd_step(theta, slope, 1e-3)
        found.append(theta)
    return found


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def test_adam_parts_at_entries_that_are_all_rounding() -> None:
    one_way, other_way = gradients()
    start = torch.zeros((1, CLASSES * INPUTS), dtype=torch.float64)
    first, other = one_way(start), other_way(start)
    assert float((first - other).norm() / first.norm()) < 1e-14
    rounding = first.abs() < EPS
    assert rounding.view(CLASSES, INPUTS).any(dim=0).nonzero().flatten().tolist() == [EVEN]

    one, two = course(one_way, adam=True), course(other_way, adam=True)
    moved = (one[0] - two[0]).abs() > 1e-12
    assert moved.any() and not (moved & ~rounding).any()
    assert apart(one[-1], two[-1]) > 1e-12
    # These entries are all there is to it.
    courses = [course(way, adam=True, without=rounding) for way in (one_way, other_way)]
    assert all(apart(*thetas) < 1e-12 for thetas in zip(*courses, strict=True))


def test_sgd_does_not_part() -> None:
    courses = [course(way, adam=False) for way in gradients()]
    assert float(courses[0][-1].abs().max()) > 0.01
    assert all(apart(*thetas) < 1e-12 for thetas in zip(*courses, strict=True))
