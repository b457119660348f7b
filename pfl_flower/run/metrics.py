"""A run's metrics, from the rows of its ``rounds.csv``, and which of them tell most."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from pfl_flower.run.served import columns
from pfl_flower.run.triggered import columns as triggered_columns

TELLING = (
    "accuracy_true",
    "accuracy_target",
    "local_accuracy",
    "own_theta_mean",
    "own_rho_mean",
    "own_alone_mean",
    "triggered_rho",
    "triggered_theta_mean",
    "distance_to_target",
    "equilibrium_accuracy_true",
    "equilibrium_accuracy_target",
)
NODES_WORD = frozenset(
    {
        "worst_residual",
        "worst_residual_ever",
        "unconverged",
        "unconverged_total",
        "local_accuracy",
        "active_accuracy",
        "idle_accuracy",
        "poisoned_points",
        "poisoned_labels",
        "poisoned_residual",
        *columns(),
        *triggered_columns(),
    }
)
"""Metrics of which a run knows only what its nodes say of themselves."""
NODES = " (the nodes' word)"
"""What is added where such a metric is shown and decides nothing."""
BY_USER = ("own_", "triggered_")
"""How the metrics begin that are measured of users one by one, when they are evaluated."""
FAULTS = ("rejections_total", "unconverged_total")


def last_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return a run's metrics: its last row, totals over rounds, the worst residual of all."""
    final = {key: value for key, value in rows[-1].items() if key not in ("seed", "round", "eta")}
    if "target_accuracy" in final:
        final["target_gap"] = final["target_accuracy"] - final["accuracy_target"]
    evaluated = ("local_accuracy", "active_accuracy", "idle_accuracy")
    local = {
        key: value
        for row in rows
        for key, value in row.items()
        if key in evaluated or key.startswith(BY_USER)
    }
    return {
        **final,
        **local,
        "rejections_total": sum(row.get("rejections", 0) for row in rows),
        "unconverged_total": sum(row.get("unconverged", 0) for row in rows),
        "worst_residual_ever": max(row.get("worst_residual", 0.0) for row in rows),
        "seconds_total": sum(row.get("seconds", 0.0) for row in rows),
    }


def telling(runs: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the metrics that are shown of runs: accuracies, or loss, and faults if there are some.

    >>> telling([{"loss_true": 1.0, "rejections_total": 0.0}, {"loss_true": 2.0}])
    ['loss_true']
    """
    names = [name for name in TELLING if any(name in run for run in runs)]
    if "accuracy_true" not in names:
        names.insert(0, "loss_true")
    return names + [name for name in FAULTS if any(run.get(name) for run in runs)]


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation as text.

    >>> spread([0.25, 0.75]), spread([0.00971, 0.01171]), spread([0.5]), spread([])
    ('0.50 ± 0.35', '0.0107 ± 0.0014', '0.5', '')
    """
    if not values:
        return ""
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    if not deviation > 0 or not math.isfinite(deviation):
        return f"{mean:.4g}" + (" ± 0" if deviation == 0 else "")
    # The mean to the second digit of its deviation, but to no more than four digits of its own.
    own = 3 - math.floor(math.log10(abs(mean))) if mean else 4
    decimals = min(1 - math.floor(math.log10(deviation)), own)
    text = f"{mean:.{decimals}f}" if 0 <= decimals <= 6 else f"{mean:.4g}"
    return f"{text} ± {deviation:.2g}"
