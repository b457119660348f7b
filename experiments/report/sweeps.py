"""Sweeps of one's own: a table of cells, beside the folders of the runs that it is of."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.report.kept import Kept, Status, short_commits
from experiments.report.runs import FIRST
from experiments.report.summary import Summary, read_summary
from pfl_flower.run.columns import Table

TABLE_FILE = "sweep.csv"
"""A line for each cell that has ended: the swept keys, the seed, metrics, passed, error."""
PLAN_FILE = "sweep.json"
"""Every cell that was asked for, and its folder."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of the grid.

    Attributes
    ----------
    settings : mapping
        The swept keys, and their values as text.
    measured : mapping
        What each metric is of, and its mean and deviation over the seeds.
    seeds, passed : int
        Cells that have ended, and those of them that passed their checks.
    errors : tuple of str
        Why cells broke off.
    """

    settings: Mapping[str, str]
    measured: Mapping[str, str]
    seeds: int
    passed: int
    errors: tuple[str, ...]

    @property
    def status(self) -> Status:
        """One word for all seeds."""
        if self.errors:
            return "error"
        return "passed" if self.passed == self.seeds else "FAILED"


@dataclass(frozen=True, kw_only=True)
class SweepEntry(Kept):
    """One sweep.

    Attributes
    ----------
    points : tuple of Point
        The grid, as far as it went.
    planned : int
        Cells that were asked for.
    cells : tuple of Summary
        What the cells left behind that can be read.
    """

    points: tuple[Point, ...]
    planned: int
    cells: tuple[Summary, ...]

    @property
    def ended(self) -> int:
        """How many cells came to an end, good or bad."""
        return sum(point.seeds for point in self.points)

    @property
    def status(self) -> Status:
        """One word: the worst of its points, or that cells are missing."""
        found = [point.status for point in self.points]
        for word in ("error", "FAILED"):
            if word in found:
                return "error" if word == "error" else "FAILED"
        if self.problem:
            return "unreadable"
        return "passed" if self.points and self.ended >= self.planned else "unfinished"

    @property
    def labels(self) -> list[str]:
        """What the metrics are of that some point has."""
        return list(dict.fromkeys(label for point in self.points for label in point.measured))

    @property
    def keys(self) -> list[str]:
        """The swept keys."""
        return list(self.points[0].settings) if self.points else []

    @property
    def made(self) -> str:
        """How many cells, and by which code."""
        return f"{self.ended} of {self.planned} cells, commit {short_commits(self.commits)}"

    @property
    def commits(self) -> list[str]:
        """Which versions of the code ran the cells."""
        return list(dict.fromkeys(cell.commit for cell in self.cells))

    @property
    def machines(self) -> list[str]:
        """What the cells ran on."""
        return list(dict.fromkeys(cell.hardware for cell in self.cells))


def read_sweep(folder: Path) -> SweepEntry | None:
    """Return the sweep that a folder holds; None if it holds none."""
    path = folder / TABLE_FILE
    if not path.is_file():
        return None
    problem, rows, swept = "", [], []
    try:
        table = Table.from_csv(path.read_text(encoding="utf-8"))
        swept = list(table.columns[: table.columns.index("seed")])
        rows = table.rows()
    except (OSError, ValueError) as error:
        problem = f"{TABLE_FILE} cannot be read: {error}"
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row.get(key, "")) for key in swept), []).append(row)
    found = [_point(dict(zip(swept, values, strict=True)), g) for values, g in groups.items()]
    cells = [read_summary(one)[0] for one in sorted(folder.rglob("summary.json"))]
    return SweepEntry(
        name=folder.name,
        folder=folder,
        summary=None,
        problem=problem,
        points=tuple(found),
        planned=_planned(folder / PLAN_FILE, len(rows)),
        cells=tuple(cell for cell in cells if cell is not None),
    )


def _point(settings: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> Point:
    return Point(
        settings=settings,
        measured=_measured(rows),
        seeds=len(rows),
        passed=sum(str(row.get("passed")) == "True" for row in rows),
        errors=tuple(dict.fromkeys(str(row["error"]) for row in rows if row.get("error"))),
    )


def _measured(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    said = {}
    for key, (label, form) in FIRST.items():
        values = [float(row[key]) for row in rows if isinstance(row.get(key), int | float)]
        values = [value for value in values if not math.isnan(value)]
        if values:
            mean = form.format(statistics.fmean(values))
            several = len(values) > 1
            said[label] = f"{mean} ± {form.format(statistics.stdev(values))}" if several else mean
    return said


def _planned(path: Path, ended: int) -> int:
    """Return how many cells were asked for, at least those that ended."""
    try:
        return max(ended, len(json.loads(path.read_text())["cells"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ended
