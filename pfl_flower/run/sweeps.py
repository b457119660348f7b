"""Many runs: every combination of some values, for every seed, kept and gone on with."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pfl_flower.run.columns import Table
from pfl_flower.run.finished import Result, read_result
from pfl_flower.run.grid import Cell, Place
from pfl_flower.run.metrics import telling
from pfl_flower.run.outcome import SUMMARY_FILE
from pfl_flower.run.results import write_json
from pfl_flower.run.rounds import numbers
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.files import replace_file
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.workers import Done, Task, in_processes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP_FILE = "sweep.json"
TABLE_FILE = "sweep.csv"
CELL_FILE = "cell.json"
"""In a cell's folder: what it was asked. Written last, so that only whole cells have it."""
ERROR_FILE = "error.txt"
TIMES = ("seconds", "seconds_total")
"""Metrics that are not in the table, which the same sweep writes the same again."""
RunCell = Callable[[Mapping[str, Any]], Result]
"""What runs the values of a cell: a function that another process can import."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sweep:
    """What a sweep came to.

    Attributes
    ----------
    keys : tuple of str
        The swept keys.
    rows : Table
        A row for each cell: swept keys, seed, metrics, whether it passed, and its error.
    folder : Path or None
        Where it is kept.
    """

    keys: tuple[str, ...]
    rows: Table
    folder: Path | None = None
    kept: Sequence[Result | Path | None] = ()

    @property
    def results(self) -> list[Result | None]:
        """The result of each row's run, None where it broke off."""
        return [read_result(one) if isinstance(one, Path) else one for one in self.kept]

    @property
    def errors(self) -> dict[int, str]:
        """Why cells broke off, by their rows' numbers."""
        return {i: error for i, error in enumerate(self.rows["error"].tolist()) if error}

    @property
    def passed(self) -> bool:
        """Whether every cell ran to its end and passed its checks."""
        return bool(np.all(self.rows["passed"]))

    def points(self) -> list[tuple[dict[str, Any], list[int]]]:
        """Return the points of the grid, each with the numbers of its rows."""
        return self.rows.groups(self.keys)

    def table(self, *metrics: str) -> Table:
        """Return mean and standard deviation over the seeds, a row for each point.

        Parameters
        ----------
        *metrics : str
            Columns of ``rows``; without any, those that matter most.
        """
        chosen = metrics or telling(self.rows.rows())
        lines = []
        for point, rows in self.points():
            line: dict[str, Any] = {**point, "seeds": len(rows)}
            for name in chosen:
                values = self.rows[name][rows]
                values = values[~np.isnan(values)]
                if len(values):
                    line[name] = float(values.mean())
                if len(values) > 1:
                    line[f"{name}_std"] = float(values.std(ddof=1))
            lines.append(line)
        return Table.from_rows(lines)

    def plot(
        self,
        x: str | None = None,
        y: str | Sequence[str] | None = None,
        by: str | Sequence[str] | None = None,
    ) -> Figure:
        """Return a figure of metrics against a swept key: means, with one deviation over seeds.

        Parameters
        ----------
        x : str, optional
            A swept key; without it the first with numbers, or the first.
        y : str or sequence of str, optional
            Metrics, a panel each; without them the accuracies, or loss and distance.
        by : str or sequence of str, optional
            Swept keys that tell the lines apart. Swept keys that are neither here nor ``x`` do too.

        Raises
        ------
        ConfigError
            If there is no such key or metric.
        """
        from pfl_flower.run.figures import draw_run
        from pfl_flower.run.sweep_figures import draw_sweep

        if self.keys:
            return draw_sweep(self.rows, self.keys, x, y, by)
        finished = [result for result in self.results if result is not None]
        return draw_run([numbers(result.text) for result in finished], finished[0].title)

    def __repr__(self) -> str:
        """Return how many cells there are, and how many did not come to a good end."""
        failed = len(self.errors)
        unsound = len(self.rows) - int(np.sum(self.rows["passed"])) - failed
        over = ", ".join(self.keys) or "seeds"
        return (
            f"Sweep over {over}: {len(self.rows)} cells, {failed} broke off, {unsound} did not "
            "pass their checks"
        )


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
    book = _Book(planned, folder)
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
    ending = _one_by_one(tasks) if jobs == 1 else in_processes(tasks, jobs=jobs, threads=threads)
    with Progress(*columns, console=console) as bar, contextlib.closing(ending):
        task = bar.add_task("sweep", total=len(planned), completed=len(book.ended), failed="")
        for done in ending:
            index = waiting[done.index]
            book.enter(index, planned[index], done)
            failed = f"{book.failed} failed" if book.failed else ""
            bar.update(task, completed=len(book.ended), failed=failed)
    book.write()
    return book.sweep()


def _one_by_one(tasks: Sequence[Task]) -> Generator[Done, None, None]:
    for index, (run, arguments) in enumerate(tasks):
        try:
            yield Done(index=index, value=run(*arguments))
        except Exception as error:
            yield Done(index=index, error=one_line(error), trace=traceback.format_exc())


class _Book:
    """What cells came to, in memory or in the sweep's folder."""

    def __init__(self, planned: Sequence[Place], folder: Path | None) -> None:
        self.planned, self.folder = planned, folder
        self.ended: dict[int, dict[str, Any]] = {}
        self.results: dict[int, Result | Path] = {}

    @property
    def failed(self) -> int:
        return sum(bool(row["error"]) for row in self.ended.values())

    def keep(self, index: int, cell: Cell) -> bool:
        """Take a cell's result from its folder, if the same was asked before."""
        if cell.folder is None:
            return False
        try:
            asked = json.loads((cell.folder / CELL_FILE).read_text())
            result = read_result(cell.folder)
        except (OSError, ValueError):
            return False
        if asked != json.loads(json.dumps(cell.asked())):
            return False
        self.note(index, result)
        return True

    def enter(self, index: int, cell: Cell, done: Done) -> None:
        """Enter how a cell ended, in its folder and in the table."""
        if cell.folder is not None:
            (cell.folder / CELL_FILE).unlink(missing_ok=True)
            if done.error:
                replace_file(cell.folder / ERROR_FILE, f"{done.error}\n\n{done.trace}".encode())
            else:
                done.value.save(cell.folder)
                (cell.folder / ERROR_FILE).unlink(missing_ok=True)
                write_json(cell.folder / CELL_FILE, cell.asked())
        if done.error:
            self.break_off(index, done.error)
        else:
            self.note(index, done.value)
        self.write()

    def break_off(self, index: int, error: str) -> None:
        """Note that a cell came to no end."""
        self.ended[index] = {"passed": False, "error": error}

    def note(self, index: int, result: Result) -> None:
        """Note what a cell came to; what is in a folder is not kept in memory."""
        measured = {key: value for key, value in result.metrics.items() if key not in TIMES}
        self.ended[index] = {**measured, "passed": result.passed, "error": ""}
        self.results[index] = self.planned[index].folder or result

    def write(self) -> None:
        """Write the table, and what the sweep is of."""
        if self.folder is None:
            return
        places = [
            {"point": dict(one.point), "seed": one.seed, "folder": _inside(one.folder, self.folder)}
            for one in self.planned
        ]
        write_json(self.folder / SWEEP_FILE, {"cells": places})
        replace_file(self.folder / TABLE_FILE, self._table().to_csv().encode())

    def _table(self) -> Table:
        order = sorted(self.ended)
        metrics = dict.fromkeys(name for i in order for name in self.ended[i])
        last = ("passed", "error")
        names = [name for name in metrics if name not in last]
        keys = [*self.planned[0].point, "seed"]
        rows = [
            {**self.planned[i].point, "seed": self.planned[i].seed, **self.ended[i]} for i in order
        ]
        return Table.from_rows(rows, [*keys, *names, *last])

    def sweep(self) -> Sweep:
        """Return what the cells came to."""
        return Sweep(
            keys=tuple(self.planned[0].point),
            rows=self._table(),
            folder=self.folder,
            kept=[self.results.get(i) for i in sorted(self.ended)],
        )


def read_sweep(folder: Path) -> Sweep:
    """Return the sweep that a folder holds, as far as it went.

    Raises
    ------
    ConfigError
        If there is none, or it is not whole.
    """
    try:
        said = json.loads((folder / SWEEP_FILE).read_text())["cells"]
        places = [
            Place(point=one["point"], seed=one["seed"], folder=folder / one["folder"])
            for one in said
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"folder = {folder}: expected a sweep ({error})") from None
    return _read(places, folder)


def read_seeds(folder: Path) -> Sweep:
    """Return the runs of one preset for several seeds: a sweep over no key.

    Raises
    ------
    ConfigError
        If there is none, or one is not whole.
    """
    found = [path for path in folder.glob("seed-*") if (path / SUMMARY_FILE).exists()]
    results = sorted((read_result(path) for path in found), key=lambda one: one.seed)
    if not results:
        raise ConfigError(f"folder = {folder}: expected a run, or a sweep, and there is none")
    book = _Book([Place(point={}, seed=one.seed, folder=one.folder) for one in results], folder)
    for index, result in enumerate(results):
        book.note(index, result)
    return book.sweep()


def _read(places: Sequence[Place], folder: Path) -> Sweep:
    book = _Book(places, folder)
    for index, place in enumerate(places):
        assert place.folder is not None
        if (place.folder / CELL_FILE).exists():
            book.note(index, read_result(place.folder))
        elif (place.folder / ERROR_FILE).exists():
            book.break_off(index, (place.folder / ERROR_FILE).read_text().partition("\n")[0])
    return book.sweep()


def _inside(path: Path | None, folder: Path) -> str:
    return "" if path is None else str(path.relative_to(folder))
