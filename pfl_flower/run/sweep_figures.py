"""Figures of sweeps: metrics against a swept key, mean and spread over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from pfl_flower.run.columns import Table
from pfl_flower.run.conclusion import MEANINGS
from pfl_flower.run.figures import OWN_COMPARED, PALETTE, Picture, legend_size, panelled
from pfl_flower.run.keys import kebab
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.foreign_text import in_figure
from pfl_flower.support.plugins import shown

PANELS = (("accuracy_true", "accuracy_target"), ("loss_true", "distance_to_target"))
"""What is drawn unless metrics are named: the first of these that was measured."""
OWN = ("own_theta_mean", "own_rho_mean")
"""What is drawn besides, of users who have test sets of their own."""
A_ROW = 2
"""Panels beside one another, unless metrics are named."""
WIDE = 20.0
"""Ratio of the largest to the least value of a key from which its axis is logarithmic."""
MARKERS = "os^Dv"
DASHES = ("-", "--", "-.", ":")
MOST_TICKS = 8
"""Values of a numeric key that are all named on its axis."""
DODGE = 0.08
"""How far beside one another the points of two lines are drawn, where x has no numbers."""


def draw_sweep(
    rows: Table,
    keys: Sequence[str],
    x: str | None = None,
    y: str | Sequence[str] | None = None,
    by: str | Sequence[str] | None = None,
) -> Picture:
    """Return metrics against a key: a panel for each metric, a line for each value of the others.

    Parameters
    ----------
    rows : Table
        A row for each cell.
    keys : sequence of str
        The swept keys.
    x, y, by
        As of ``Sweep.plot``.

    Raises
    ------
    ConfigError
        If there is no such key or metric.
    """
    across = _known("x", kebab(x), keys) if x else _best_x(rows, keys)
    given = [by] if isinstance(by, str) else list(by or ())
    first = [_known("by", kebab(key), keys) for key in given]
    several = [key for key in dict.fromkeys([*first, *keys]) if len(set(rows[key].tolist())) > 1]
    apart = [key for key in several if key != across]
    measured = [name for name in rows.columns if rows[name].dtype.kind in "fib"]
    metrics = [y] if isinstance(y, str) else list(y or _best_y(measured))
    for metric in metrics:
        _known("y", metric, measured)
    labels = [_label(point) for point, _ in rows.groups(apart)]
    beside = len(metrics) if y else min(A_ROW, len(metrics))
    width = 4.6 * beside + 0.6
    columns, under = legend_size(labels, width) if apart else (1, 0.0)
    figure, panels = panelled(len(metrics), beside, width, 3.6, under)
    for axes, metric in zip(panels, metrics, strict=True):
        _draw_panel(axes, rows, across, apart, metric)
    if apart:
        handles, _ = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    seeds = len(set(rows["seed"].tolist()))
    if seeds > 1:
        figure.suptitle(f"mean of {seeds} seeds, and one standard deviation", fontsize=10)
    return figure


def _draw_panel(axes: Axes, rows: Table, across: str, apart: Sequence[str], metric: str) -> None:
    named = rows[across].dtype == object
    places = list(dict.fromkeys(rows[across].tolist()))
    lines = rows.groups(apart)
    for number, (point, members) in enumerate(lines):
        shift = DODGE * (number - (len(lines) - 1) / 2) if named else 0.0
        xs, means, spreads = [], [], []
        for value in places if named else sorted(places):
            values = rows[metric][members][rows[across][members] == value].astype(float)
            values = values[np.isfinite(values)]
            if len(values):
                xs.append(places.index(value) + shift if named else value)
                means.append(values.mean())
                spreads.append(values.std(ddof=1) if len(values) > 1 else 0.0)
        label = _label(point)
        axes.errorbar(
            xs,
            means,
            yerr=spreads,
            fmt=MARKERS[number % len(MARKERS)],
            linestyle="none" if named else DASHES[number % len(DASHES)],
            # Every other line is hollow, so that one that lies on another is seen.
            markerfacecolor="white" if number % 2 else None,
            color=PALETTE[number % len(PALETTE)],
            label=label,
            capsize=3,
            markersize=5,
        )
    _place(axes, places, named)
    _scale(axes, metric, rows[metric].astype(float))
    axes.set(
        xlabel=in_figure(across),
        ylabel=OWN_COMPARED.get(metric) or MEANINGS.get(metric) or in_figure(metric),
    )
    axes.grid(alpha=0.3)


def _label(point: Mapping[str, Any]) -> str:
    return in_figure(", ".join(f"{key} = {shown(value)}" for key, value in point.items()))


def _place(axes: Axes, places: list[Any], named: bool) -> None:
    """Scale and name the axis of the swept key."""
    if named:
        axes.set_xticks(range(len(places)), [in_figure(shown(place)) for place in places])
        axes.set_xlim(-0.5, len(places) - 0.5)
        return
    if min(places) > 0 and max(places) / min(places) >= WIDE:
        axes.set_xscale("log")
    if len(places) <= MOST_TICKS:
        axes.set_xticks(sorted(places), [shown(place) for place in sorted(places)])
        axes.minorticks_off()


def _scale(axes: Axes, metric: str, values: NDArray[np.float64]) -> None:
    finite = values[np.isfinite(values)]
    if "accuracy" in metric:
        axes.set_ylim(-0.03, 1.03)
    elif len(finite) and finite.min() > 0 and finite.max() / finite.min() >= WIDE:
        axes.set_yscale("log")


def _best_x(rows: Table, keys: Sequence[str]) -> str:
    for key in keys:
        if rows[key].dtype.kind in "fi" and len(set(rows[key].tolist())) > 1:
            return key
    return keys[0]


def _best_y(measured: Sequence[str]) -> list[str]:
    own = [name for name in OWN if name in measured]
    for panels in PANELS:
        found = [name for name in panels if name in measured]
        if found:
            return found + own
    if own:
        return own
    return [name for name in measured if name not in ("seed", "passed")][:1]


def _known(what: str, name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise ConfigError(f"{what} = {name}: expected one of {', '.join(names)}")
    return name
