"""How the cells of ``heterogeneity`` are shown: the trade-off by lam, and a table to choose by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.studies.drawing import legend_above, shade
from experiments.studies.study import Result
from pfl_flower.run.figures import PALETTE, save
from pfl_flower.support.files import replace_file

LINES = (
    ("none", "theta", r"$\theta_n$, no attack", "-", 0),
    ("CGA", "theta", r"$\theta_n$, one attacks", "-", 1),
    ("none", "own rho", r"$\rho$, no attack", ":", 0),
    ("CGA", "own rho", r"$\rho$, one attacks", ":", 1),
)
"""What is drawn: the attack, the measure, its name, its style, its colour."""
HEAD = (
    "alpha",
    "regulariser",
    "alone",
    "best lam",
    "theta_n there",
    "under CGA there",
    "best lam under CGA",
    "theta_n there, under CGA",
    "CGA owns rho from lam",
)


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw accuracies by lam, a panel for each alpha and regulariser, and write the table."""
    cells = results[0]["cells"]
    names = list(next(iter(cells.values())))
    size = 1.0 + 2.3 * len(cells), 1.2 + 1.9 * len(names)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(names), len(cells), sharex=True, sharey=True, squeeze=False)
    for row, name in enumerate(names):
        for column, alpha in enumerate(cells):
            axes = panels[row][column]
            _panel(axes, results, alpha, name)
            if row == 0:
                axes.set_title("even shares" if alpha == "inf" else f"Dirichlet({alpha})")
            if row == len(names) - 1:
                axes.set_xlabel(r"$\lambda$")
        panels[row][0].set_ylabel(f"{name}\naccuracy on own tests")
    legend_above(figure, panels[0][0], 5, fontsize=9)
    save(figure, folder, "heterogeneity")
    replace_file(folder / "heterogeneity.md", "\n".join(table(results)) + "\n")


def _panel(axes: Axes, results: Sequence[Result], alpha: str, name: str) -> None:
    lams = np.array([float(lam) for lam in results[0]["cells"][alpha][name]["by lam"]])
    for attack, measure, label, style, colour in LINES:
        values = _values(results, alpha, name, attack, measure)
        axes.plot(
            lams, values.mean(axis=0), style, marker="o", ms=3, color=PALETTE[colour], label=label
        )
        shade(axes, lams, values, colour=PALETTE[colour])
    alone = np.mean([result["cells"][alpha][name]["alone"] for result in results])
    axes.axhline(float(alone), color="grey", linestyle="--", linewidth=1, label="learned alone")
    axes.set(xscale="log", ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)


def _values(
    results: Sequence[Result], alpha: str, name: str, attack: str, measure: str
) -> NDArray[np.float64]:
    """Return a measure ``(seeds, lams)``."""
    chains = [result["cells"][alpha][name]["by lam"] for result in results]
    return np.array([[both[attack][measure] for both in chain.values()] for chain in chains])


def table(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of a Markdown table: which lam is best, in peace and under attack."""
    yield f"| {' | '.join(HEAD)} |"
    yield "|" + "---|" * len(HEAD)
    for alpha, by_name in results[0]["cells"].items():
        for name in by_name:
            yield f"| {' | '.join(_row(results, alpha, name))} |"


def _row(results: Sequence[Result], alpha: str, name: str) -> list[str]:
    lams = [float(lam) for lam in results[0]["cells"][alpha][name]["by lam"]]
    calm, hit, reached = (
        _values(results, alpha, name, attack, measure).mean(axis=0)
        for attack, measure in (("none", "theta"), ("CGA", "theta"), ("CGA", "reached"))
    )
    alone = np.mean([result["cells"][alpha][name]["alone"] for result in results])
    best, safe = int(calm.argmax()), int(hit.argmax())
    owned = [lam for lam, share in zip(lams, reached, strict=True) if share == 1]
    return [
        alpha,
        name,
        f"{alone:.3f}",
        f"{lams[best]:g}",
        f"{calm[best]:.3f}",
        f"{hit[best]:.3f}",
        f"{lams[safe]:g}",
        f"{hit[safe]:.3f}",
        f"{min(owned):g}" if owned else "none tried",
    ]
