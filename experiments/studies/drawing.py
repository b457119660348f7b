"""What the studies' figures have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray


def legend_above(figure: Figure, axes: Axes, columns: int, **more: Any) -> None:
    """Put the legend of one panel, which speaks for all, above the figure."""
    handles, labels = axes.get_legend_handles_labels()
    place = {"loc": "outside upper center", "frameon": False, **more}
    figure.legend(handles, labels, ncols=columns, **place)


def medians(
    axes: Axes, x: ArrayLike, values: NDArray[Any], style: str = "-", *, colour: str, **line: Any
) -> None:
    """Draw the medians of values ``(repeats, points)``, and shade their range."""
    axes.plot(x, np.median(values, axis=0), style, color=colour, **line)
    shade(axes, x, values, colour=colour)


def shade(axes: Axes, x: ArrayLike, values: ArrayLike, *, colour: str, alpha: float = 0.15) -> None:
    """Shade the range of values ``(repeats, points)``."""
    low, high = np.min(values, axis=0), np.max(values, axis=0)
    axes.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)
