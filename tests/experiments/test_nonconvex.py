"""``equivalence-nonconvex``: what its parts say, on small sizes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from experiments.studies.study import Setting
from experiments.theory import nonconvex
from experiments.theory.nonconvex import ETA, PACE, World, curvature, quality, rounds
from pfl_flower.objective.vectors import norm


@cache
def world() -> World:
    return World.draw(Setting(seed=1), "linear")


def test_the_target_is_what_the_attacker_wants_and_the_trained_model_what_the_others_want() -> None:
    true, wanted = world().answers(world().trained)
    assert true > 0.8 > 0.1 > wanted
    true, wanted = world().answers(world().target)
    assert wanted > 0.9 > 0.1 > true
    assert world().left(world().start) == 1.0
    assert world().left(world().target) == 0.0


def test_reports_take_rho_along_the_way_at_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """``rho_{t+1} - target = (1 - pace)(rho_t - target) - eta (pull_t - pull_{t-1})``."""
    monkeypatch.setattr(nonconvex, "QUICK_ROUNDS", 2)
    left = rounds(world(), Setting(seed=1, quick=True), False)["left"]
    start, target = world().start, world().target
    first = start - ETA * world().pull(start) - PACE * (start - target)
    second = first - PACE * (first - target) - ETA * (world().pull(first) - world().pull(start))
    assert left == pytest.approx([world().left(first), world().left(second)], rel=1e-9)
    idle = rounds(world(), Setting(seed=1, quick=True, control=True), False)["left"]
    assert idle[-1] > 0.99


def test_of_a_wish_that_labels_have_all_is_met_and_quality_says_so() -> None:
    """Other labels of the images, of a weight within reach: nothing but labels is asked."""
    inverse, rho = world().attack.inverse, world().start
    begun = inverse.start(
        nonconvex.POINTS, rho, torch.Generator().manual_seed(1), world().attack.own
    )
    labels = torch.rand(begun.answers.shape, generator=torch.Generator().manual_seed(2)).double()
    theirs = replace(begun, answers=labels / labels.sum(dim=1, keepdim=True))
    wished = inverse.gradient(rho, theirs).detach()
    found = quality(world().points_for(rho, wished, nonconvex.HEAVY, 1), wished, "x")
    assert found["residual: x"] < 1e-3
    assert found["cosine: x"] == pytest.approx(1, abs=1e-6)
    silent = quality(inverse.judged(rho, wished, begun), wished, "x")
    assert silent["residual: x"] == pytest.approx(1, abs=1e-9)


def test_the_curvature_is_the_largest_eigenvalue_of_the_hessian() -> None:
    inverse, target = world().attack.inverse, world().target
    points = inverse.start(5, target, torch.Generator().manual_seed(1), world().attack.own)

    def slope(rho: torch.Tensor) -> torch.Tensor:
        return world().pull(rho) + inverse.gradient(rho, points)

    found = curvature(world(), inverse, points)
    direction = torch.randn(target.shape, generator=torch.Generator().manual_seed(1)).double()
    moved = (slope(target + 1e-5 * direction) - slope(target)).detach() / 1e-5
    assert float(moved @ direction) <= 1.001 * found * float(norm(direction)) ** 2
    assert found < 1e9
