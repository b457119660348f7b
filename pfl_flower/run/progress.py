"""A bar that shows how far a run is, and what was measured of rho last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pfl_flower.run.rounds import Watch


@contextmanager
def round_bar(console: Console, title: str, total: int) -> Iterator[Watch]:
    """Show a bar of ``total`` rounds while the body runs, which tells it of each round."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[measured]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, measured="")

        def show(round: int, row: Mapping[str, float]) -> None:
            bar.update(task, completed=round, measured=measured(row))

        yield show


def measured(row: Mapping[str, float]) -> str:
    """Return distance and accuracies of a round, for a progress line."""
    parts = []
    if "distance_to_target" in row:
        parts.append(f"distance {row['distance_to_target']:.3g}")
    if "accuracy_true" in row:
        parts.append(f"accuracy {row['accuracy_true']:.3f}/{row['accuracy_target']:.3f}")
    return "  ".join(parts)
