"""Runs the cells of a sweep that are not there yet, one after another or side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pfl_flower.run.finished import Result
from pfl_flower.run.grid import Cell
from pfl_flower.run.sweep_book import SweepBook
from pfl_flower.run.sweeps import Sweep
from pfl_flower.support.workers import Task, ending

RunCell = Callable[[Mapping[str, Any]], Result]
"""What runs the values of a cell: a function that another process can import."""


def run_cells(
    planned: Sequence[Cell],
    run: RunCell,
    *,
    jobs: int,
    threads: int,
    folder: Path | None,
    fresh: bool,
    console: Console,
) -> Sweep:
    """Run the cells that are not there yet, in ``jobs`` processes, and return all.

    What a cell comes to does not depend on ``jobs``, which decides only how many run side by side.
    With ``jobs = 1`` they run in this process.

    Parameters
    ----------
    planned : sequence of Cell
        All cells.
    run : callable
        What runs one.
    jobs, threads : int
        Processes, and threads of each.
    folder : Path or None
        Where cells, table and settings are kept; None for nowhere.
    fresh : bool
        Run the cells again that are there.
    console : Console
        Where progress is shown.
    """
    book = SweepBook(planned, folder)
    waiting = [i for i, cell in enumerate(planned) if fresh or not book.keep(i, cell)]
    tasks: list[Task] = [(run, (planned[i].values,)) for i in waiting]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}"),
        TimeRemainingColumn(),
    )
    if len(waiting) < len(planned):
        console.print(f"kept from before: {len(planned) - len(waiting)} of {len(planned)} cells")
    if not tasks:
        book.write()
        return book.sweep()
    running = ending(tasks, jobs=jobs, threads=threads)
    with Progress(*columns, console=console) as bar, contextlib.closing(running):
        task = bar.add_task("sweep", total=len(planned), completed=len(book.ended), failed="")
        for done in running:
            index = waiting[done.index]
            book.enter(index, planned[index], done)
            failed = f"{book.failed} failed" if book.failed else ""
            bar.update(task, completed=len(book.ended), failed=failed)
    book.write()
    return book.sweep()
