"""A progress bar that reads what a run writes, the same for every engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pfl_flower.results import read_rounds

POLL_SECONDS = 0.3


@contextmanager
def progress(console: Console, title: str, rows: Path, total: int) -> Iterator[None]:
    """Show the last round, distance and accuracies of ``rows`` while the body runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[measured]}"),
        TimeElapsedColumn(),
    )
    rows.unlink(missing_ok=True)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, measured="")
        stop = threading.Event()

        def show() -> None:
            last = _last_row(rows)
            if last is not None:
                bar.update(task, completed=int(last.get("round", 0)), measured=_measured(last))

        def watch() -> None:
            while not stop.wait(POLL_SECONDS):
                show()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            show()


def _last_row(path: Path) -> dict[str, float] | None:
    try:
        found = read_rounds(path)
    except (OSError, ValueError):
        return None
    return found[-1] if found else None


def _measured(row: dict[str, float]) -> str:
    parts = [f"distance {row.get('distance_to_target', float('nan')):.3g}"]
    if "accuracy_true" in row:
        parts.append(f"accuracy {row['accuracy_true']:.3f}/{row['accuracy_target']:.3f}")
    return "  ".join(parts)
