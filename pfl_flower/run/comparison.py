"""Runs side by side: what differs in their settings, what came of it, curves over one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfl_flower.run.columns import Table
from pfl_flower.run.finished import Result
from pfl_flower.run.keys import Scalar
from pfl_flower.run.metrics import spread, telling
from pfl_flower.run.rounds import numbers
from pfl_flower.run.sweeps import Sweep
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.files import replace_file
from pfl_flower.support.folders import writable_folder
from pfl_flower.support.plugins import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN = frozenset({"name", "output-dir", "seed", "resume", "state-dir"})
"""Keys that every run has for itself."""
NAME = "compare"
FEW = 3
"""Runs that have a column of the table each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Runs under their names, each with one result per seed.

    Attributes
    ----------
    runs : mapping
        From a name to the results of its seeds.
    """

    runs: dict[str, list[Result]]

    @classmethod
    def of(cls, found: Sequence[Result | Sweep]) -> Comparison:
        """Return the comparison of runs and of the points of sweeps.

        Raises
        ------
        ConfigError
            If there is nothing to compare.
        """
        listed = [pair for one in found for pair in _parts(one)]
        names = _apart([name for name, _ in listed])
        runs = {name: results for name, (_, results) in zip(names, listed, strict=True) if results}
        if not runs:
            raise ConfigError("compare: expected at least one finished run")
        return cls(runs=runs)

    @cached_property
    def settings(self) -> dict[str, list[Scalar]]:
        """The keys whose values differ, and the value of each run; empty where a key is not."""
        configs = [results[0].config for results in self.runs.values()]
        keys = dict.fromkeys(key for config in configs for key in config if key not in OWN)
        values = {key: [config.get(key, "") for config in configs] for key in keys}
        return {key: said for key, said in values.items() if len(set(said)) > 1}

    def table(self) -> Table:
        """Return what differs and what was measured: mean and deviation over the seeds.

        A column for each run; a row for each where there are more than a few.
        """
        names = list(self.runs)
        columns: dict[str, list[Any]] = {
            key: [shown(value) for value in values] for key, values in self.settings.items()
        }
        columns["seeds"] = [len(results) for results in self.runs.values()]
        measured = [[result.metrics for result in results] for results in self.runs.values()]
        for name in telling([metrics for seeds in measured for metrics in seeds]):
            columns[name] = [
                spread([one[name] for one in seeds if name in one]) for seeds in measured
            ]
        if len(names) > FEW:
            # What a sweep's points are is in the columns of the keys.
            return Table({"run": [name.partition(": ")[0] for name in names], **columns})
        turned = {
            name: [str(column[i]) for column in columns.values()] for i, name in enumerate(names)
        }
        return Table({"": list(columns), **turned})

    def plot(self, *metrics: str) -> Figure:
        """Return the curves of all runs over one another: mean and deviation over the seeds.

        Parameters
        ----------
        *metrics : str
            Columns of ``rounds.csv``, a panel each; without any, accuracies and distance.
        """
        from pfl_flower.run.figures import draw_runs

        curves = {
            name: [numbers(result.text) for result in results]
            for name, results in self.runs.items()
        }
        return draw_runs(curves, metrics)

    def save(self, folder: str | Path, *metrics: str) -> list[Path]:
        """Write table and figure, and return the paths."""
        from pfl_flower.run.figures import save

        place = writable_folder("folder", folder)
        path = place / f"{NAME}.csv"
        replace_file(path, self.table().to_csv().encode())
        return [path, *save(self.plot(*metrics), place, NAME)]


def _parts(found: Result | Sweep) -> list[tuple[str, list[Result]]]:
    if isinstance(found, Result):
        return [(_name(found.folder, found.config), [found])]
    results = found.results
    stem = "sweep" if found.folder is None else found.folder.name
    several = [key for key in found.keys if len(set(found.rows[key].tolist())) > 1]
    parts = []
    for point, rows in found.points():
        label = ", ".join(f"{key} = {shown(point[key])}" for key in several)
        finished = [result for row in rows if (result := results[row]) is not None]
        parts.append((f"{stem}: {label}" if label else stem, finished))
    return parts


def _name(folder: Path | None, config: dict[str, Scalar]) -> str:
    if folder is None:
        return str(config["name"])
    return f"{folder.parent.name}/{folder.name}" if folder.name.startswith("seed-") else folder.name


def _apart(names: Sequence[str]) -> list[str]:
    """Return the names, numbered where two are the same."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[:i].count(name) + 1})"
        for i, name in enumerate(names)
    ]
