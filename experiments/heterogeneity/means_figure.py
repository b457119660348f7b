"""The pictures of ``interpolation``: errors by level of collaboration, and the best levels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.heterogeneity.means import RESPONSES, RULES
from experiments.studies.study import Result
from pfl_flower.run.figures import PALETTE, save

WORLDS = {
    "sigma_h": (r"$\sigma_h$, how far users differ", (0.5, 1.0, 2.0, 4.0, 8.0)),
    "f": ("f, liars of 600", (0, 50, 100, 150, 200)),
    "sigma": (r"$\sigma$, noise of a point", (5.0, 10.0, 15.0, 30.0)),
}
LARGEST = 16.0
"""Errors beyond are cut off: alone a user has 11.25."""


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw errors by level, of mixtures and of bounded couplings, and the best levels by world."""
    figure = Figure(figsize=(10.5, 6.4), layout="constrained")
    above, below = figure.subplots(2, 3).tolist()
    weights, kappas = (np.array(results[0]["curves"][x]) for x in ("weights", "kappas"))
    _errors(above[0], results, weights, [*RULES])
    above[0].set(xlabel="level w of collaboration", ylabel="mean squared error")
    above[0].set_title("squared l2, rho by a rule")
    _errors(above[1], results, kappas, [*RESPONSES])
    above[1].set(xscale="log", xlabel=r"$\lambda$ / m", title="bounded R, rho by the sum")
    above[2].axis("off")
    for axes in above[:2]:
        axes.legend(fontsize=7)
    for axes, (kind, (label, values)) in zip(below, WORLDS.items(), strict=True):
        _levels(axes, results, kind, np.array(values, dtype=float))
        axes.set(xlabel=label, ylim=(0, 1.02))
    below[0].set_ylabel("best level of collaboration")
    below[0].legend(fontsize=8)
    save(figure, folder, "interpolation")


def _errors(axes: Axes, results: Sequence[Result], x: np.ndarray, names: Sequence[str]) -> None:
    for colour, name in zip(PALETTE, names, strict=False):
        for label, rows in results[0]["curves"]["error"].items():
            side, _, held = label.rpartition(", ")
            if held != name:
                continue
            rows = np.array([result["curves"]["error"][label] for result in results])
            style = "-" if side == "nobody lies" else "--"
            axes.plot(x, rows.mean(axis=0), style, color=colour, label=f"{name}, {side}")
    alone = np.mean([result["metrics"]["nobody lies: alone"] for result in results])
    axes.axhline(float(alone), color="grey", linestyle=":", label="alone")
    axes.set_ylim(0, LARGEST)
    axes.grid(alpha=0.3)


def _levels(axes: Axes, results: Sequence[Result], kind: str, values: np.ndarray) -> None:
    rows = np.array([result["curves"]["levels"][kind]["measured"] for result in results])
    axes.errorbar(
        values,
        rows.mean(axis=0),
        yerr=rows.std(axis=0),
        fmt="o",
        color=PALETTE[0],
        label="measured",
    )
    predicted = results[0]["curves"]["levels"][kind]["predicted"]
    axes.plot(values, predicted, "-", color="black", linewidth=1, label="predicted")
    axes.grid(alpha=0.3)
