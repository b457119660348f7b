"""The study of backdoors: its own count is the run's, and its claims can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.backdoors.study import BASE, OPTIONS, STUDY, led
from experiments.running.engines import run_once
from experiments.running.options import Options
from experiments.running.preset_runs import final_metrics
from pfl_flower.run.config import parse_config
from tests.support.studies import control_metrics


@pytest.mark.parametrize("attack", ["backdoor", "model-replacement"])
def test_led_points_are_counted_as_a_run_counts_them(attack: str, tmp_path: Path) -> None:
    keys = {**BASE, "attack": attack, "attack-options": OPTIONS, "save-trajectory": True}
    few = {"rounds": 12, "points-per-user": "60", "evaluate-every": 12}
    config = parse_config({**keys, **few, "output-dir": str(tmp_path)})
    run_once(config, Options(output=tmp_path))
    found = final_metrics(config)["triggered_rho"]
    assert led(config) == pytest.approx(found, abs=1e-12)
    assert found > 0


@pytest.mark.slow
def test_the_quick_form_and_its_control(tmp_path: Path) -> None:
    metrics = control_metrics(STUDY, tmp_path)
    left = {name: value for name, value in metrics.items() if ", led, rho: " in name}
    assert len(left) == 9 and max(left.values()) == 0.0
