"""Runs that a figure is made of: several configurations for one seed, and their curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.paper.curves import COLUMNS, curve
from experiments.running.preset_runs import final_metrics
from experiments.studies.study import Setting
from experiments.studies.variants import Keys, run_variant

ENDINGS = (
    *COLUMNS,
    "gradient_norm",
    "worst_residual",
    "target_accuracy",
    "target_gap",
    "poisoned_points",
    "poisoned_labels",
    "poisoned_residual",
    "rejections_total",
    "seconds_total",
)
"""What is kept of a run's last round; the run's own summary has the rest."""


def run_variants(setting: Setting, variants: Mapping[str, Keys]) -> dict[str, Any]:
    """Run every variant; return metrics ``label: name`` and curves by label and column."""
    metrics: dict[str, float] = {}
    curves: dict[str, Any] = {}
    for label, keys in variants.items():
        config = run_variant(setting, label, keys)
        ended = final_metrics(config)
        metrics |= {f"{label}: {key}": ended[key] for key in ENDINGS if key in ended}
        curves[label] = curve(config.folder() / "rounds.csv")
    return {"metrics": metrics, "curves": curves}
