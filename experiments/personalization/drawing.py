"""The picture of who is hurt: accuracy on users' own points, by way and attack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.study import Result
from pfl_flower.run.figures import save

SHOWN = {"rho": "rho", "theta": "honest users' models", "the user worst off": "the user worst off"}


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw a heat map for rho, users and the user worst off: means over seeds."""
    metrics = [result["metrics"] for result in results]
    cases = [key.removesuffix(": theta") for key in metrics[0] if key.endswith(": theta")]
    attacks = list(dict.fromkeys(case.partition(", ")[0] for case in cases))
    ways = list(dict.fromkeys(case.partition(", ")[2] for case in cases))
    figure = Figure(figsize=(15.0, 4.6), layout="constrained")
    for axes, (what, title) in zip(figure.subplots(1, 3, sharey=True), SHOWN.items(), strict=True):
        values = np.array(
            [
                [np.mean([one[f"{attack}, {way}: {what}"] for one in metrics]) for way in ways]
                for attack in attacks
            ]
        )
        if what == "rho":
            values[:, [way == "local" for way in ways]] = np.nan  # a rho that nobody uses is none
        axes.imshow(values, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            text, colour = f"{value:.2f}", "k" if value > 0.5 else "w"
            if value == value:
                axes.text(column, row, text, ha="center", va="center", color=colour)
        axes.set_xticks(range(len(ways)), [way.replace(", ", ",\n") for way in ways])
        axes.set_yticks(range(len(attacks)), attacks)
        axes.set_title(title)
    figure.suptitle("accuracy on users' own points")
    save(figure, folder, "who-is-hurt")
