"""The picture of backdoors: shares of triggered points led, by attack and regulariser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.drawing import legend_above
from experiments.studies.study import Result
from pfl_flower.run.figures import PALETTE, save

SHOWN = {"led, rho": "rho", "led, theta": "honest users' models, mean"}
WIDTH = 0.36


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw a panel for each model: means over seeds, and their range."""
    metrics = [result["metrics"] for result in results]
    cases = list(dict.fromkeys(key.rpartition(": ")[::2] for key in metrics[0]))
    models = list(dict.fromkeys(model for what, model in cases if what.endswith("led, rho")))
    rows = [
        what.removesuffix(", led, rho")
        for what, model in cases
        if what.endswith("led, rho") and model == models[0]
    ]
    figure = Figure(figsize=(4.2 * len(models) + 1.6, 5.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(models), sharey=True))
    for axes, model in zip(panels, models, strict=True):
        for index, (key, label) in enumerate(SHOWN.items()):
            for place, row in enumerate(rows):
                found = [one.get(f"{row}, {key}: {model}") for one in metrics]
                values = [value for value in found if value is not None]
                if not values:
                    continue
                mean = float(np.mean(values))
                error = [[mean - min(values)], [max(values) - mean]]
                axes.barh(
                    place + (index - 0.5) * WIDTH,
                    mean,
                    WIDTH,
                    xerr=error,
                    color=PALETTE[index],
                    label=label if place == len(rows) - 1 else None,
                )
        axes.set(title=model, xlabel="triggered points taken for the label", xlim=(0, 1.05))
        axes.set_yticks(range(len(rows)), [", under ".join(row.split(", ")) for row in rows])
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    legend_above(figure, panels[0], len(SHOWN))
    save(figure, folder, "backdoors")
