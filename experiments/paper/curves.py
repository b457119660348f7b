"""What is kept of a run's rounds for drawing, and how it is drawn over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from experiments.studies.study import Result
from pfl_flower.run.figures import draw_band
from pfl_flower.run.rounds import read_rounds

COLUMNS = (
    "accuracy_true",
    "accuracy_target",
    "distance_to_target",
    "distance_to_start",
    "distance_to_honest",
    "norm_rho",
    "strategic_gradient_norm",
    "local_accuracy",
    "active_accuracy",
    "idle_accuracy",
)
MOST_POINTS = 400
"""Rows of a curve that are kept for drawing."""


def curve(path: Path) -> dict[str, dict[str, list[float]]]:
    """Return ``round`` and value of each column of a run, at most 400 rows of each."""
    rows = read_rounds(path)
    kept = {}
    for column in COLUMNS:
        points = [(row["round"], row[column]) for row in rows if column in row]
        if points:
            chosen = _spread(len(points))
            kept[column] = {
                "round": [points[i][0] for i in chosen],
                "value": [points[i][1] for i in chosen],
            }
    return kept


def _spread(rows: int) -> Sequence[int]:
    """Return rows to keep: half of them evenly spaced, half so on a logarithmic axis."""
    if rows <= MOST_POINTS:
        return range(rows)
    even = np.linspace(0, rows - 1, MOST_POINTS // 2)
    early = np.geomspace(1, rows - 1, MOST_POINTS // 2)
    return np.unique(np.concatenate([even, early]).round().astype(int)).tolist()


def draw_curve(
    axes: Axes,
    results: Sequence[Result],
    variant: str,
    column: str,
    *,
    colour: int,
    label: str,
    style: str = "-",
    scale: float = 1.0,
) -> None:
    """Draw ``scale`` times a column of a variant: mean over seeds, a band of one deviation."""
    asked = [result["curves"].get(variant, {}).get(column) for result in results]
    found = [one for one in asked if one]
    if not found:
        return
    rounds = found[0]["round"]
    values = np.array([one["value"] for one in found], dtype=float)
    values[~np.isfinite(values)] = np.nan
    draw_band(axes, rounds, scale * values, label, colour, style)
