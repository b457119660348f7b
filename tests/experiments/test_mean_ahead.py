"""Figure 5's exception: what the study predicts of sums and means, on problems of seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.paper import mean_ahead, mean_at_rest, sums_and_means
from experiments.running.options import Options
from experiments.studies.study import Setting
from experiments.studies.variants import Keys, configured
from pfl_flower.run.problem import Problem, build_problem

AT_REST = (
    *(f"{what} at rest: {label}" for what in ("active", "norm") for label in mean_at_rest.REST),
    *(f"gradient left: {label}" for label in mean_at_rest.REST),
    "rest, mean ahead of sum",
    "rest, sum ahead of alone",
    "rest, ridge over mean",
)
SMALL: Keys = {"dataset": "digits", "dtype": "float64", "rounds": 1}


def problem(folder: Path, label: str, **keys: object) -> Problem:
    setting = Setting(seed=1, folder=folder, options=Options(output=folder, device="cpu"))
    asked = {**mean_ahead.variants(quick=True)[label], **SMALL, "points-per-user": "200,10"}
    return build_problem(configured(setting, label, {**asked, **keys}))  # type: ignore[dict-item]


def test_a_scaled_sum_weighs_the_active_users_mean_loss_as_the_study_says(tmp_path: Path) -> None:
    """And the idle users' losses together as many times less as they have fewer points."""
    users = mean_at_rest.EVERYBODY
    values = {}
    for label in ("sum", "mean"):
        one = problem(tmp_path, label, **{"points-per-user": "1000,10"})
        values[label] = one.population(users).value(one.initial.expand(len(users), -1))
    ratio = values["sum"] / values["mean"]
    active, idle = ratio[0], ratio[1:]
    assert float(active) == pytest.approx(11 / (1 + 100 / 1000))
    assert idle.tolist() == pytest.approx([float(active) / 100] * 10)
    expected = 11 / (1 + 100 / mean_ahead.POINTS)
    assert expected == pytest.approx(mean_ahead.WEIGHT)
    asked = mean_ahead.variants(quick=False)
    for label in ("sum, lam w", "sum, lam w, rho held"):
        assert asked[label]["lam"] == pytest.approx(expected * mean_ahead.LAM)
    assert asked["sum, nu"]["nu"] == pytest.approx(expected * mean_ahead.LAM)


def test_with_rho_held_a_sum_with_lam_w_asks_of_the_active_user_what_the_mean_asks(
    tmp_path: Path,
) -> None:
    """Both gradients are one direction, w times as long, which Adam does not see."""
    weight = 11 / (1 + 100 / 200)
    found = []
    for label, lam in (("mean", mean_ahead.LAM), ("sum, lam w", mean_ahead.LAM * weight)):
        one = problem(tmp_path, label, lam=lam)
        theta = one.initial + 0.1
        pull = one.regularizer.grad_rho(one.initial, theta[None])[0]
        found.append(one.population((0,)).gradient(theta[None])[0] - pull)
    mean, scaled = found
    assert torch.allclose(weight * mean, scaled, rtol=1e-10, atol=1e-14)


def test_ten_idle_users_who_stay_at_zero_pull_as_the_ridge_does() -> None:
    """``min_rho lam ||rho - theta||^2 + 10 lam ||rho||^2``, on a grid of rho along theta."""
    lam, theta = mean_ahead.LAM, 3.0
    rho = torch.linspace(0, theta, 100_001, dtype=torch.float64)
    least = (lam * (rho - theta) ** 2 + mean_at_rest.IDLE * lam * rho**2).min()
    assert float(least) == pytest.approx(lam * mean_at_rest.RIDGE * theta**2, rel=1e-6)


def test_at_rest_a_ridge_is_seen_and_everything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the digits: the ridge's model is the shortest by far, as nothing holds the others."""
    small = {**sums_and_means.BASE, **SMALL, "points-per-user": "1400,10"}
    monkeypatch.setattr(sums_and_means, "BASE", small)
    setting = Setting(seed=1, folder=tmp_path, options=Options(output=tmp_path, device="cpu"))
    found = mean_at_rest.linear_at_rest(setting, mean_ahead.LAM)
    assert set(found) == set(AT_REST)
    assert found["gradient left: alone, ridge"] < 1e-5
    assert found["rest, ridge over mean"] < 0.5
    for label in ("sum", "mean", "alone"):
        assert found[f"norm at rest: {label}"] > 2 * found["norm at rest: alone, ridge"], label
    ahead = found["active at rest: mean"] - found["active at rest: sum"]
    assert found["rest, mean ahead of sum"] == ahead
    assert 0.2 < found["active at rest: sum"] < 1


def test_the_early_accuracy_is_that_of_the_round_asked_or_the_last_before() -> None:
    curve: dict[str, list[float]] = {"round": [10, 20, 30], "value": [0.1, 0.2, 0.3]}
    assert [mean_ahead._at(curve, at) for at in (10, 25, 99)] == [0.1, 0.2, 0.3]
