"""The picture: for each rule what was found, and where a bound stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.influence.measuring import Row
from pfl_flower.run.figures import PALETTE, save

PANELS = {"round": "in one round", "rest": "where rho rests"}
LEAST = 1e-4
"""What displacements of nothing are drawn at."""


def draw(seeds: Sequence[Sequence[Row]], folder: Path) -> tuple[Path, Path]:
    """Draw dots for what was found, a bar for the bound, a line from one to the other."""
    rows = [row for ones in seeds for row in ones]
    rules = list(dict.fromkeys(row.rule for row in rows))
    couplings = list(dict.fromkeys(row.regularizer for row in rows))
    figure = Figure(figsize=(10.0, 1.6 + 0.42 * len(rules)), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (what, title) in zip(panels, PANELS.items(), strict=True):
        for row in rows:
            number = couplings.index(row.regularizer)
            shift = (number - (len(couplings) - 1) / 2) * 0.22
            _one(axes, row, what, rules.index(row.rule) + shift, PALETTE[number % len(PALETTE)])
        axes.set(xscale="log", xlabel="displacement of rho", title=title)
        axes.set_yticks(range(len(rules)), rules)
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    handles = [
        panels[0].plot([], [], "o", color=PALETTE[i % len(PALETTE)], label=name)[0]
        for i, name in enumerate(couplings)
    ]
    bound = panels[0].plot([], [], "|", color="black", markersize=12, label="bound")[0]
    figure.legend(handles=[*handles, bound], loc="outside upper center", ncols=4, frameon=False)
    return save(figure, folder, "influence")


def _one(axes: Axes, row: Row, what: str, place: float, colour: str) -> None:
    found, bound = (getattr(row, f"{what}_{name}") for name in ("found", "bound"))
    shown = max(found, LEAST)
    axes.plot([shown], [place], "o", color=colour, markersize=5)
    if math.isfinite(bound):
        axes.plot([bound], [place], "|", color=colour, markersize=12, markeredgewidth=2)
        axes.plot([shown, bound], [place, place], "-", color=colour, linewidth=0.8, alpha=0.6)
