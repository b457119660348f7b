"""The main job at full size: ten honest users of 500 digits and one strategic user."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.paper.protocols import PAPER
from experiments.running.options import Options
from experiments.running.preset_runs import run_preset
from pfl_flower.run.preset_claims import NO_CLAIM

CONSOLE = Console(quiet=True)


def summary(name: str, folder: Path, **settings: Any) -> dict[str, Any]:
    options = Options(output=folder, settings=settings, fresh=True)
    return run_preset(name, options, CONSOLE)


def final(result: dict[str, Any]) -> dict[str, float]:
    return {name: metric["mean"] for name, metric in result["metrics"].items()}


def test_squared_l2_is_moved_to_the_target(tmp_path: Path) -> None:
    result = summary("digits-squared-l2", tmp_path)
    measured = final(result)
    assert result["passed"], result["checks"]
    assert measured["distance_to_target"] < 1e-6
    assert measured["accuracy_target"] >= 0.95
    assert measured["accuracy_true"] <= 0.02
    assert measured["worst_residual_ever"] <= 1e-10
    assert result["behaviour"] == ["settling"]


@pytest.mark.slow
@pytest.mark.parametrize("regularizer", ["l2", "smooth-l2"])
def test_a_ball_bounds_the_same_attack(regularizer: str, tmp_path: Path) -> None:
    result = summary(f"digits-{regularizer}", tmp_path)
    assert result["passed"], result["checks"]
    assert final(result)["accuracy_true"] >= 0.90
    assert final(result)["worst_residual_ever"] <= 1e-10


def test_twice_the_automatic_step_diverges_and_says_so(tmp_path: Path) -> None:
    settings = {"server-lr-factor": 2.0, "points-per-user": "200", "rounds": 25}
    result = summary("digits-squared-l2", tmp_path, **settings)
    assert result["behaviour"] == ["diverging"]
    assert result["claims"] == NO_CLAIM


def mnist(name: str, folder: Path, **settings: Any) -> dict[str, Any]:
    if not os.environ.get("PFL_DATA_DIR"):
        pytest.skip("PFL_DATA_DIR is not set: no image data on this machine")
    return summary(name, folder, **settings)


MNIST = ["mnist-squared-l2", "mnist-l2", "mnist-smooth-l2", "mnist-cnn-l2"]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", MNIST)
def test_mnist_under_the_threat_model(name: str, tmp_path: Path) -> None:
    """Server SGD with automatic steps, CGA with the inferred estimator."""
    result = mnist(name, tmp_path)
    assert result["passed"], result["checks"]
    assert result["config"]["estimator"] == "inferred"


@pytest.mark.slow
@pytest.mark.data
def test_mnist_under_the_papers_protocol(tmp_path: Path) -> None:
    """Server Adam, and the honest sum of the previous round given to the attacker."""
    squared = final(mnist("mnist-squared-l2", tmp_path, **PAPER))
    assert squared["accuracy_true"] <= 0.01
    l2 = final(mnist("mnist-l2", tmp_path, **PAPER))
    assert l2["accuracy_true"] >= 0.91
