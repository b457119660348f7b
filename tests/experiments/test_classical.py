"""The study of large lam: its own gradients are the library's, and its claims can fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.theory.classical import LOSSES, STRENGTHS, STUDY, approach
from experiments.theory.classical_descent import Classical, curvatures, slopes
from experiments.theory.honest_users import draw_scenario
from pfl_flower.objective.regularizers import L2
from tests.support.studies import run_quick


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradients_and_hessians_are_those_of_the_users_losses(loss: str) -> None:
    scenario = draw_scenario(loss, L2(lam=1.0), seed=3, users=3, points=20, dim=4)
    rho = np.array([0.3, -0.5, 0.2, 1.1])
    found = slopes(scenario, rho)
    np.testing.assert_allclose(found, scenario.pulls(torch.from_numpy(rho)).numpy(), rtol=1e-12)
    step = 1e-6
    # What is left of the slopes' last digits, some of each, in their difference.
    rounding = 10 * np.finfo(float).eps * np.abs(found).max() / step
    for axis, direction in enumerate(np.eye(4)):
        ahead, behind = (slopes(scenario, rho + s * direction) for s in (step, -step))
        slope, curvature = (ahead - behind) / (2 * step), curvatures(scenario, rho)[:, :, axis]
        np.testing.assert_allclose(curvature, slope, rtol=1e-7, atol=rounding)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_optimum_is_one_and_the_path_leads_to_it(loss: str) -> None:
    scenario = draw_scenario(loss, L2(lam=1.0), seed=3, users=3, points=20, dim=4)
    short, long = (Classical.of(scenario, rounds) for rounds in (5, 400))
    np.testing.assert_allclose(short.optimum, long.optimum, rtol=1e-10)
    assert np.linalg.norm(slopes(scenario, short.optimum).sum(axis=0)) < 1e-10
    ends = [np.linalg.norm(one.path[-1] - one.optimum) for one in (short, long)]
    assert ends[1] < 1e-3 * ends[0]


def test_users_who_agree_leave_no_difference_at_rest() -> None:
    scenario = draw_scenario("least-squares", L2(lam=1.0), seed=1, users=3, points=20, dim=4)
    same = replace(scenario, users=scenario.users[:1] * 3)
    assert Classical.of(same, 5).predicted(1)[0] < 1e-12
    assert Classical.of(scenario, 5).predicted(1)[0] > 1e-3


@pytest.mark.parametrize(
    ("power", "constant", "failing"),
    [
        (-1.0, 1.0, set()),
        (-1.0, 1.1, {"over prediction"}),
        (-0.9, None, {"exponent"}),
        (-2.0, None, {"exponent"}),
    ],
)
def test_a_claim_of_the_rate_can_fail(
    power: float, constant: float | None, failing: set[str]
) -> None:
    distances = [7 * strength**power for strength in STRENGTHS]
    first_order = 7 / constant if constant else distances[-1] * STRENGTHS[-1]
    label = "logistic, smooth l2, at rest"
    metrics = approach(distances, first_order, label)
    failed = {
        check.name.rpartition(": ")[2]
        for check in STUDY.checks_of([metrics])
        if check.name.startswith(label) and not check.passed
    }
    assert failed == failing


def test_l2_that_is_never_classical_or_always_fails() -> None:
    label = "logistic, l2, at rest"
    for below, above, failing in ((0.1, 1e-12, 0), (0.1, 1e-3, 1), (1e-12, 1e-12, 1)):
        metrics = {f"{label}: below": below, f"{label}: above": above}
        checks = [c for c in STUDY.checks_of([metrics]) if c.name.startswith(label)]
        assert sum(not check.passed for check in checks) == failing


@pytest.mark.slow
def test_the_quick_form_passes_as_theory_says(tmp_path: Path) -> None:
    summary = run_quick(STUDY, tmp_path)
    assert summary["passed"], [check for check in summary["checks"] if not check["passed"]]
    assert summary["standing"] == "reproduced"
    assert (tmp_path / "classical" / "classical.png").stat().st_size > 10_000
