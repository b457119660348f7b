"""How the cells of ``defences`` are shown: heat maps, Markdown, and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from experiments.studies.study import Result
from pfl_flower.run.figures import save
from pfl_flower.support.files import replace_file

COLOURS = "cividis"
"""Light to dark with any colour vision, and in grey."""
WIDTH = 132
"""Columns of the terminal that nine attacks and eight rules take."""
DIVERGED = 10.0
"""Times the way to the target, beyond which rho counts as diverged."""
MAPS: Mapping[str, tuple[str, str]] = {
    "defences": ("accuracy", "accuracy of the global model on true labels"),
    "defences-way": (
        "share",
        "share of the way from the reference to the attacker's target (div.: rho diverged)",
    ),
}


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw both heat maps, write the table as Markdown, and print it."""
    for name, (measure, title) in MAPS.items():
        panels = means(results, measure)
        heat_maps(panels, title, folder, name)
    accuracies, shares = means(results, "accuracy"), means(results, "share")
    lines = []
    for regularizer, (attacks, defences, values) in accuracies.items():
        texts = written(values, shares[regularizer][2])
        show(regularizer, attacks, defences, texts)
        lines += markdown(regularizer, attacks, defences, texts)
    replace_file(folder / "defences.md", "\n".join(lines))


Panel = tuple[list[str], list[str], NDArray[np.float64]]
"""Attacks, defences, and a value ``(attacks, defences)``."""


def means(results: Sequence[Result], measure: str) -> dict[str, Panel]:
    """Return a measure of all cells, its mean over seeds, by regulariser."""
    panels: dict[str, Panel] = {}
    for regularizer, rows in results[0]["cells"].items():
        attacks, defences = list(rows), list(next(iter(rows.values())))
        values = [
            [[result["cells"][regularizer][a][d][measure] for d in defences] for a in attacks]
            for result in results
        ]
        panels[regularizer] = attacks, defences, np.mean(values, axis=0)
    return panels


def heat_maps(panels: Mapping[str, Panel], title: str, folder: Path, name: str) -> None:
    """Draw one heat map for each regulariser, every cell with its number."""
    attacks, defences, _ = next(iter(panels.values()))
    size = 1.6 + (0.62 * len(defences) + 0.3) * len(panels), 2.1 + 0.36 * len(attacks)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for one, (regularizer, panel) in zip(axes, panels.items(), strict=True):
        _heat_map(one, panel)
        one.set_title(regularizer)
    figure.suptitle(title)
    save(figure, folder, name)


def _heat_map(axes: Axes, panel: Panel) -> None:
    attacks, defences, values = panel
    shown = np.ma.masked_where(~(abs(values) <= DIVERGED), values)
    axes.set_facecolor("white")
    axes.imshow(shown, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(defences)), defences, rotation=40, ha="right", fontsize=9)
    axes.set_yticks(range(len(attacks)), attacks, fontsize=9)
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if -DIVERGED <= value < 0.5 else "black"
        axes.text(column, row, number(value), ha="center", va="center", color=colour, fontsize=8)


def number(value: float) -> str:
    """Return two decimals, no -0, and a word where rho is past all bounds.

    >>> number(0.956), number(-0.004), number(-12345.0), number(float("nan"))
    ('0.96', '0.00', 'div.', 'nan')
    """
    if abs(value) > DIVERGED:
        return "div."
    text = f"{value:.2f}"
    return text.removeprefix("-") if float(text) == 0 else text


def written(accuracies: NDArray[np.float64], shares: NDArray[np.float64]) -> list[list[str]]:
    """Return each cell as ``accuracy (share of the way)``."""
    return [
        [f"{number(a)} ({number(s)})" for a, s in zip(ones, others, strict=True)]
        for ones, others in zip(accuracies, shares, strict=True)
    ]


def show(title: str, attacks: list[str], defences: list[str], texts: list[list[str]]) -> None:
    """Print a table."""
    table = Table(title=f"{title}: accuracy (share of the way to the target)")
    for column in ("attack", *defences):
        table.add_column(column)
    for attack, row in zip(attacks, texts, strict=True):
        table.add_row(attack, *row)
    console = Console()
    Console(width=max(WIDTH, console.width)).print(table)


def markdown(
    title: str, attacks: list[str], defences: list[str], texts: list[list[str]]
) -> list[str]:
    """Return the lines of a Markdown table."""
    rows = [[attack, *row] for attack, row in zip(attacks, texts, strict=True)]
    head = [f"{title}: accuracy (share of the way)", *defences]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return [*lines, ""]
