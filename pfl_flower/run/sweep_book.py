"""The book of a sweep: what its cells came to, in memory and in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfl_flower.run.columns import Table
from pfl_flower.run.finished import Result, read_result
from pfl_flower.run.grid import Cell, Place
from pfl_flower.run.places import SUMMARY_FILE
from pfl_flower.run.results import write_json
from pfl_flower.run.sweeps import Sweep
from pfl_flower.run.writing import refuse_other
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.files import replace_file
from pfl_flower.support.foreign_text import legible, one_line
from pfl_flower.support.workers import Done

SWEEP_FILE = "sweep.json"
TABLE_FILE = "sweep.csv"
CELL_FILE = "cell.json"
"""In a cell's folder: what it was asked. Written last, so that only whole cells have it."""
ERROR_FILE = "error.txt"
TIMES = ("seconds", "seconds_total")
"""Metrics that are not in the table, which the same sweep writes the same again."""


class SweepBook:
    """What cells came to, in memory or in the sweep's folder."""

    def __init__(self, planned: Sequence[Place], folder: Path | None) -> None:
        self.planned, self.folder = planned, folder
        self.ended: dict[int, dict[str, Any]] = {}
        self.results: dict[int, Result | Path] = {}

    @property
    def failed(self) -> int:
        """How many cells broke off."""
        return sum(bool(row["error"]) for row in self.ended.values())

    def keep(self, index: int, cell: Cell) -> bool:
        """Take a cell's result from its folder, if the same was asked before.

        Raises
        ------
        ConfigError
            If other settings were.
        """
        if cell.folder is None:
            return False
        try:
            asked = json.loads((cell.folder / CELL_FILE).read_text())
            result = read_result(cell.folder)
        except (OSError, ValueError):
            return False
        here = json.loads(json.dumps(cell.asked()))
        if asked != here:
            # Made by other code, it is run again; of other settings, it is somebody's result.
            refuse_other("output", cell.folder, here["settings"], asked.get("settings", {}))
            return False
        self.note(index, result)
        return True

    def enter(self, index: int, cell: Cell, done: Done) -> None:
        """Enter how a cell ended, in its folder and in the table."""
        if cell.folder is not None:
            (cell.folder / CELL_FILE).unlink(missing_ok=True)
            if done.error:
                replace_file(cell.folder / ERROR_FILE, f"{done.error}\n\n{legible(done.trace)}")
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
    book = SweepBook([Place(point={}, seed=one.seed, folder=one.folder) for one in results], folder)
    for index, result in enumerate(results):
        book.note(index, result)
    return book.sweep()


def _read(places: Sequence[Place], folder: Path) -> Sweep:
    book = SweepBook(places, folder)
    for index, place in enumerate(places):
        assert place.folder is not None
        if (place.folder / CELL_FILE).exists():
            book.note(index, read_result(place.folder))
        elif (place.folder / ERROR_FILE).exists():
            said = (place.folder / ERROR_FILE).read_text(errors="replace")
            book.break_off(index, one_line(said.partition("\n")[0]))
    return book.sweep()


def _inside(path: Path | None, folder: Path) -> str:
    return "" if path is None else str(path.relative_to(folder))
