"""The study of who is hurt: it measures the same ten users everywhere, and its claims can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.personalization.study import (
    ATTACKS,
    BASE,
    NOBODY,
    STRATEGIC,
    STUDY,
    WAYS,
    honest_elsewhere,
)
from experiments.running.engines import run_once
from experiments.running.options import Options
from experiments.running.preset_runs import final_metrics
from pfl_flower.run.config import parse_config
from tests.support.studies import control_metrics


def test_who_never_attacks_is_counted_as_a_run_counts_the_honest(tmp_path: Path) -> None:
    keys = {**BASE, **STRATEGIC, "rounds": 4, "evaluate-every": 4, "output-dir": str(tmp_path)}
    config = parse_config(keys)
    run_once(config, Options(output=tmp_path))
    found, expected = honest_elsewhere(config), final_metrics(config)
    assert found == {name: pytest.approx(expected[name], abs=1e-12) for name in found}
    assert set(found) >= {"own_rho_mean", "own_theta_mean", "own_theta_worst"}


@pytest.mark.slow
def test_the_quick_form_and_its_control(tmp_path: Path) -> None:
    metrics = control_metrics(STUDY, tmp_path)
    for way in WAYS:
        assert len({metrics[f"{attack}, {way}: theta"] for attack in ATTACKS}) == 1
        assert metrics[f"{NOBODY}, {way}: theta"] > 0.5
