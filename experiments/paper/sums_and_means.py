"""Sums against means of the local losses: the runs, how they are judged, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.paper.curves import draw_curve
from experiments.studies.drawing import legend_above
from experiments.studies.study import Result
from experiments.studies.variants import Keys
from pfl_flower.run.checks import Check, Metrics, above
from pfl_flower.run.figures import save

BASE: Keys = {
    "dataset": "fashion-mnist",
    "users": 11,
    "points-per-user": "60000,10",
    "strategic-users": "none",
    "nu": 0.0,
    "dtype": "float32",
    "local-solver": "adam",
    "local-lr": 0.04,
    "local-lr-decay": 0.99,
    "local-lr-floor": 0.02,
    "server-optimizer": "adam",
    "server-lr": 0.04,
    "server-lr-decay": 0.99,
    "server-lr-floor": 0.02,
    "update-order": "simultaneous",
    "evaluate-every": 10,
}
REDUCTIONS: Mapping[str, str] = {"sum": "scaled-sum", "mean": "mean"}
LINES = (("active_accuracy", "active"), ("idle_accuracy", "idle"), ("accuracy_true", "global"))
QUICK_POINTS: Keys = {"points-per-user": "6000,10"}
"""A tenth of the active user's data, for the quick forms."""


def variants(
    models: Sequence[str], lams: Sequence[float], noise: float, rounds: int, size: Keys = BASE
) -> dict[str, Keys]:
    """Return both reductions for every model and lam."""
    return {
        f"{model}, lam {lam:g}, {reduction}": {
            **BASE,
            **size,
            "model": model,
            "lam": lam,
            "reduction": REDUCTIONS[reduction],
            "label-noise": noise,
            "rounds": rounds,
        }
        for model in models
        for lam in lams
        for reduction in REDUCTIONS
    }


def having(results: Sequence[Result], model: str, lam: float) -> list[Result]:
    """Return the results of the seeds that have runs of a model with this lam."""
    runs = f"{model}, lam {lam:g}, "
    return [r for r in results if any(key.startswith(runs) for key in r["metrics"])]


def sums_beat_means(
    finals: Sequence[Metrics], models: Sequence[str], lams: Sequence[float]
) -> list[Check]:
    """Return, for every model and lam that was run, that the sum's worst seed beats all means."""
    checks = []
    results = [{"metrics": final} for final in finals]
    for key, found in measured(results, models, lams).items():
        for column, who in LINES:
            sums, means = (
                [
                    float(result["metrics"].get(f"{key}, {reduction}: {column}", math.nan))
                    for result in found
                ]
                for reduction in REDUCTIONS
            )
            margins = [one - other for one in sums for other in means]
            checks.append(above(0).check(f"{key}: {who}, sum above mean", margins))
    return checks


def worst_margin(
    metrics: Mapping[str, float], models: Sequence[str], lams: Sequence[float]
) -> float:
    """Return the least of what sums are ahead of means, over all settings that a seed has.

    Raises
    ------
    ValueError
        If it has none.
    """
    names = [
        (f"{model}, lam {lam:g}, sum: {column}", f"{model}, lam {lam:g}, mean: {column}")
        for model in models
        for lam in lams
        for column, _ in LINES
    ]
    return min(metrics[one] - metrics[other] for one, other in names if one in metrics)


def measured(
    results: Sequence[Result], models: Sequence[str], lams: Sequence[float]
) -> dict[str, list[Result]]:
    """Return the seeds' results by model and lam, of those that were run."""
    pairs = {f"{model}, lam {lam:g}": (model, lam) for model in models for lam in lams}
    found = {key: having(results, *pair) for key, pair in pairs.items()}
    return {key: some for key, some in found.items() if some}


def draw_reductions(
    results: Sequence[Result],
    folder: Path,
    name: str,
    models: Sequence[str],
    lams: Sequence[float],
) -> None:
    """Draw the three accuracies over rounds: a row for each model and lam, mean beside sum."""
    rows = measured(results, models, lams)
    figure = Figure(figsize=(9.0, 1.0 + 2.5 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 2, squeeze=False, sharey=True)
    for row, (key, found) in zip(grid, rows.items(), strict=True):
        for axes, reduction in zip(row, ("mean", "sum"), strict=True):
            for colour, (column, label) in enumerate(LINES):
                run, style = f"{key}, {reduction}", ("-", "--", ":")[colour]
                draw_curve(axes, found, run, column, colour=colour, label=label, style=style)
            title = f"{key.replace('lam ', 'lam = ')}, using the {reduction}"
            axes.set(xlabel="round", ylim=(0, 1), title=title)
            axes.grid(alpha=0.3)
        row[0].set(ylabel="test accuracy")
    legend_above(figure, grid[0][1], 3)
    save(figure, folder, name)
