"""Rows kept from before, and those that are not there yet measured, one after another or not."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.influence.measuring import Row, Size, measure
from experiments.running.options import Options
from experiments.running.preset_runs import may_keep
from pfl_flower.run.columns import Table
from pfl_flower.support.files import replace_file
from pfl_flower.support.workers import ending

FILE = "influence.csv"
"""In a seed's folder: the rows, written anew as each comes."""
MEASURED = frozenset({"eta", "round_bound", "round_found", "rest_bound", "rest_found"})
"""Numbers of a row that are not counts."""
Cell = tuple[str, str]
"""A rule and a regulariser."""


def rows_of(
    cells: Sequence[Cell],
    size: Size,
    seed: int,
    folder: Path,
    options: Options,
    ended: Callable[[Cell, int], None],
) -> list[Row]:
    """Return the rows of the cells in their order, those measured that are not kept.

    Parameters
    ----------
    cells : sequence of Cell
        What is wanted.
    size, seed
        How much is tried, and of which draws of the honest users' data.
    folder : Path
        Where rows are kept.
    options : Options
        ``jobs`` processes measure side by side; ``keep`` and ``fresh`` say what is kept.
    ended : callable
        Told of each cell whose row is written, and how many are left.

    Raises
    ------
    RuntimeError
        If a cell's runs break off, when all others were measured.
    """
    kept = _kept(folder / FILE, size, seed, options)
    waiting = [cell for cell in cells if cell not in kept]
    broke, left = [], len(waiting)
    tasks = [(measure, (rule, coupling, size, seed)) for rule, coupling in waiting]
    with contextlib.closing(ending(tasks, jobs=options.jobs, threads=1)) as running:
        for done in running:
            cell, left = waiting[done.index], left - 1
            if done.error:
                broke.append(f"{', '.join(cell)}: {done.error}")
                continue
            kept[cell] = done.value
            folder.mkdir(parents=True, exist_ok=True)
            table = Table.from_rows([row.kept() for row in kept.values()])
            replace_file(folder / FILE, table.to_csv())
            ended(cell, left)
    if broke:
        raise RuntimeError("; ".join(broke))
    return [kept[cell] for cell in cells]


def _kept(path: Path, size: Size, seed: int, options: Options) -> dict[Cell, Row]:
    """Return the rows of a file that were measured with this size, and may be kept."""
    if not path.is_file():
        return {}
    found: dict[Cell, Row] = {}
    for values in Table.from_csv(path.read_text()).rows():
        if not may_keep(values, options):
            continue
        row = row_of(values)
        same = (row.strategic, row.directions, row.rounds, row.trials, row.seed)
        if same == (size.strategic, size.directions, size.rounds, size.trials, seed):
            found[row.rule, row.regularizer] = row
    return found


def row_of(values: Mapping[str, Any]) -> Row:
    """Return the row of what is kept, as CSV or JSON; a number that is not there is no bound."""
    said = {name: value for name, value in values.items() if value is not None and value == value}
    whole = {"round_bound": math.inf, "rest_bound": math.inf, "commit": "", **said}
    # JSON has no infinity: it is spelt.
    numbers: dict[str, Any] = {k: float(x) if k in MEASURED else x for k, x in whole.items()}
    return Row(**numbers)
