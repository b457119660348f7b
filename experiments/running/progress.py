"""A progress bar that reads what a run writes, the same for every engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from pfl_flower.run.progress import round_bar
from pfl_flower.run.rounds import read_rounds

POLL_SECONDS = 0.3


@contextmanager
def progress(console: Console, title: str, rows: Path, total: int) -> Iterator[None]:
    """Show the last round, distance and accuracies of ``rows`` while the body runs."""
    with round_bar(console, title, total) as show:
        with watching(rows, lambda row: show(int(row.get("round", 0)), row)):
            yield


@contextmanager
def watching(rows: Path, show: Callable[[dict[str, float]], object]) -> Iterator[None]:
    """Call ``show`` with the last row that a run has written, now and then while the body runs."""
    # What is there may be another run's, which writes to it still: it is looked past, and stays.
    stop, old = threading.Event(), _stamp(rows)

    def look() -> None:
        last = _last_row(rows) if _stamp(rows) != old else None
        if last is not None:
            show(last)

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        look()


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _last_row(path: Path) -> dict[str, float] | None:
    try:
        found = read_rounds(path)
    except (OSError, ValueError):
        return None
    return found[-1] if found else None
