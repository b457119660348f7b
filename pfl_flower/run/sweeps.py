"""What a sweep came to: a row for each cell, means and spread over the seeds, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_flower.run.columns import Table
from pfl_flower.run.finished import Result, read_result
from pfl_flower.run.metrics import telling
from pfl_flower.run.preset_claims import NO_CLAIM
from pfl_flower.run.rounds import numbers
from pfl_flower.support.foreign_text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    @property
    def unclaimed(self) -> int:
        """How many cells' settings are no preset's, so that nothing is claimed of them."""
        return sum(one is not None and one.claims == NO_CLAIM for one in self.results)

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
        over = one_line(", ".join(self.keys)) or "seeds"
        return (
            f"Sweep over {over}: {len(self.rows)} cells, {failed} broke off, {unsound} did not "
            "pass their checks"
        )
