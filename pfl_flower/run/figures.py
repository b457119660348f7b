"""Figures of runs: colour-blind-safe, labelled, as PNG and PDF."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pfl_flower.support.errors import ConfigError
from pfl_flower.support.files import replacing
from pfl_flower.support.foreign_text import in_figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, told apart with any colour vision."""

Curves = Sequence[Sequence[Mapping[str, float]]]
"""For each seed the rows of ``rounds.csv``."""


class Picture(Figure):
    """A figure that a notebook shows by itself, without pyplot and its state."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def draw_run(curves: Curves, title: str) -> Picture:
    """Return accuracy and distances by round: the mean over seeds, one deviation around it."""
    figure = Picture(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    measured = {key for row in curves[0] for key in row}
    if "accuracy_true" in measured:
        draw(left, curves, "accuracy_true", "on true labels", 0)
        draw(left, curves, "accuracy_target", "on the attacker's labels", 1, style="--")
        left.set(ylabel="test accuracy of the global model", ylim=(-0.03, 1.03))
    elif "loss_true" in measured:
        draw(left, curves, "loss_true", "test loss", 0)
        left.set(ylabel="mean loss of the global model")
    else:
        _draw_untested(left, curves, measured)
    if any("distance_to_target" in row for row in curves[0]):
        draw(right, curves, "distance_to_target", "to the target", 0)
    draw(right, curves, "distance_to_start", "to the start", 1, style="--")
    draw(right, curves, "norm_rho", "norm", 2, style=":")
    right.set(ylabel="distance of the global model", yscale="log")
    for axes in (left, right):
        axes.set(xlabel="round")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3, frameon=False)
    figure.suptitle(in_figure(title), fontsize=11)
    return figure


def _draw_untested(axes: Axes, curves: Curves, measured: set[str]) -> None:
    """Draw what is known without a common test set: of users' own, or how long rho's steps are."""
    own = [name for name in OWN if name in measured]
    for number, name in enumerate(own):
        draw(axes, curves, name, OWN[name], number, DASHES[number])
    if own:
        axes.set(ylabel="on users' own test sets, mean over users")
        return
    draw(axes, curves, "step_norm", "of a round", 0)
    axes.set(ylabel="length of a step of the global model", yscale="log")


def run_figure(curves: Curves, title: str, folder: Path, name: str = "run") -> tuple[Path, Path]:
    """Write what ``draw_run`` draws, and return the paths of the PNG and the PDF."""
    return save(draw_run(curves, title), folder, name)


OWN = {
    "own_theta_mean": "theta_n",
    "own_rho_mean": "rho",
    "own_alone_mean": "a model learned alone",
}
"""What models come to on users' own test sets, and what they are called there."""
COMPARED = {
    "accuracy_true": "accuracy on true labels",
    "accuracy_target": "accuracy on the attacker's labels",
    "distance_to_target": "distance of rho to the target",
    "loss_true": "test loss",
    "distance_to_start": "distance of rho to its start",
}
"""What is compared unless columns are named: the first three that some run has."""
OWN_COMPARED = {
    "own_theta_mean": "theta_n on own test sets, mean user",
    "own_theta_worst": "theta_n on own test sets, worst user",
    "own_rho_mean": "rho on users' test sets, mean user",
}
"""What is compared besides, of users who have test sets of their own."""
A_ROW = 3
"""Panels beside one another."""
NAMED = {**COMPARED, **OWN_COMPARED}
DASHES = ("-", "--", ":", "-.")
LETTERS, HANDLE, LINE_HEIGHT = 12.0, 8, 0.22
"""Of a legend: letters an inch, what a line's sample takes in letters, inches from line to line."""


def draw_runs(runs: Mapping[str, Curves], metrics: Sequence[str] = ()) -> Picture:
    """Return the curves of several runs over one another, a panel for each metric.

    Without metrics these are three of rho, and three on users' own test sets where there are some.

    Raises
    ------
    ConfigError
        If no run has such a column.
    """
    measured = {key for curves in runs.values() for rows in curves for row in rows for key in row}
    for metric in metrics:
        if metric not in measured:
            raise ConfigError(f"y = {metric}: expected one of {', '.join(sorted(measured))}")
    usual = [key for key in COMPARED if key in measured][:A_ROW]
    chosen = metrics or [*usual, *(key for key in OWN_COMPARED if key in measured)]
    across = len(metrics) or min(A_ROW, len(chosen))
    width = 4.3 * across + 0.4
    columns, under = legend_size(list(runs), width)
    figure, panels = panelled(len(chosen), across, width, 3.5, under)
    for axes, metric in zip(panels, chosen, strict=True):
        if metric.startswith(("distance", "norm")):
            axes.set_yscale("log")
        for number, (name, curves) in enumerate(runs.items()):
            if any(metric in row for row in curves[0]):
                style = DASHES[number // len(PALETTE) % len(DASHES)]
                draw(axes, curves, metric, in_figure(name), number % len(PALETTE), style)
        axes.set(xlabel="round", ylabel=NAMED.get(metric) or in_figure(metric))
        axes.grid(alpha=0.3)
        if "accuracy" in metric:
            axes.set_ylim(-0.03, 1.03)
    labelled = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(labelled.values()),
        list(labelled),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )
    return figure


def panelled(
    count: int, across: int, width: float, height: float, under: float
) -> tuple[Picture, list[Axes]]:
    """Return a figure with so many panels, and these; ``under`` is the legend's height."""
    down = math.ceil(count / across)
    figure = Picture(figsize=(width, height * down + under), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def legend_size(labels: Sequence[str], width: float) -> tuple[int, float]:
    """Return the columns and the height of a legend under a figure so wide, in inches."""
    longest = max(map(len, labels), default=0)
    columns = max(1, min(len(labels), int(width * LETTERS) // (longest + HANDLE)))
    return columns, LINE_HEIGHT * math.ceil(len(labels) / columns)


def draw(axes: Axes, curves: Curves, key: str, label: str, colour: int, style: str = "-") -> None:
    """Draw one column of all seeds: its mean and a band of one standard deviation."""
    rounds = [row["round"] for row in curves[0] if key in row]
    columns = [[row[key] for row in rows if key in row] for rows in curves]
    length = min(len(column) for column in columns)
    values = np.array([column[:length] for column in columns])
    values[~np.isfinite(values)] = np.nan
    if axes.get_yscale() == "log" or key.startswith(("distance", "norm")):
        values[values <= 0] = np.nan
    draw_band(axes, rounds[:length], values, label, colour, style)


def draw_band(
    axes: Axes,
    rounds: Sequence[float],
    values: NDArray[np.float64],
    label: str,
    colour: int,
    style: str = "-",
) -> None:
    """Draw the mean of ``values (seeds, rounds)`` and a band of one standard deviation."""
    mean = values.mean(axis=0)
    axes.plot(rounds, mean, style, color=PALETTE[colour], label=label, linewidth=1.6)
    if len(values) > 1:
        spread = values.std(axis=0)
        low = np.maximum(mean - spread, values.min(axis=0))
        axes.fill_between(rounds, low, mean + spread, color=PALETTE[colour], alpha=0.2, linewidth=0)


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write ``name.png`` and ``name.pdf``, each in one move."""
    paths = folder / f"{name}.png", folder / f"{name}.pdf"
    for path in paths:
        with replacing(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=150)
    return paths
