"""The command: row by row, kept as they come, then the table and the picture."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table as Printed

from experiments.influence.drawing import draw
from experiments.influence.measuring import FULL, QUICK, USERS, Row, Size, measure, pushed, quiet
from experiments.running.options import Options
from experiments.running.preset_runs import may_keep
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.objective.table import REGULARIZERS
from pfl_flower.run.columns import Table
from pfl_flower.run.config import parse_config
from pfl_flower.run.keys import kebab
from pfl_flower.support.console import plain
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.files import replace_file
from pfl_flower.support.folders import writable_folder

FILE = "influence.csv"
QUICKLY = ("squared-l2", "l2")
"""Regularisers of the quick form: one of which GRAD is everything, and a ball."""


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Measure what the command line names and return its exit code.

    Raises
    ------
    ConfigError
        If a rule or a regulariser does not admit such a run, in its own words.
    """
    k = parsed.strategic
    if not 1 <= k < USERS / 2:
        raise ConfigError(f"--strategic {k}: expected 1 to {(USERS - 1) // 2}, of {USERS} users")
    directions, rounds, trials = QUICK if parsed.quick else FULL
    size = Size(strategic=k, directions=directions, rounds=rounds, trials=trials)
    rules = list(dict.fromkeys(parsed.rule)) or list(AGGREGATIONS)
    usual = QUICKLY if parsed.quick else list(REGULARIZERS)
    couplings = list(dict.fromkeys(parsed.regularizer)) or list(usual)
    cells = [(rule, coupling) for rule in rules for coupling in couplings]
    for rule, coupling in cells:
        for keys in (
            quiet(rule, coupling, size),
            pushed(rule, coupling, size, rounds=rounds, direction=1, sign=1),
        ):
            parse_config({kebab(key): value for key, value in keys.items()})
    folder = writable_folder("--output", parsed.output) / "influence"
    folder.mkdir(parents=True, exist_ok=True)
    kept = _kept(folder / FILE, size, Options(fresh=parsed.fresh, keep=parsed.keep))
    rows: list[Row] = []
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("influence", total=len(cells))
        for rule, coupling in cells:
            bar.update(task, description=f"{plain(rule)}, {plain(coupling)}")
            rows.append(kept.get((rule, coupling)) or measure(rule, coupling, size))
            kept[rule, coupling] = rows[-1]
            replace_file(
                folder / FILE, Table.from_rows([one.kept() for one in kept.values()]).to_csv()
            )
            bar.advance(task)
    console.print(table(rows))
    for path in (folder / FILE, *draw(rows, folder)):
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    broken = [row for row in rows if not row.holds]
    for row in broken:
        console.print(
            f"failed: {row.rule}, {row.regularizer}: found beyond the bound", highlight=False
        )
    return 1 if broken else 0


def table(rows: Sequence[Row]) -> Printed:
    """Return the table as it is printed."""
    k = rows[0].strategic
    title = f"how far {k} of {USERS} users move rho, lam = 1"
    printed = Printed(title=title, caption="free: rho went where it was pushed, 1000 away")
    for name in ("rule", "regulariser", "round: found", "bound", "at rest: found", "bound"):
        printed.add_column(name, justify="left" if name.startswith(("rule", "reg")) else "right")
    for row in rows:
        rest = "free" if row.free else f"{row.rest_found:.3g}"
        once = "free" if row.free and math.isinf(row.round_bound) else f"{row.round_found:.3g}"
        bounds = [
            f"{b:.3g}" if math.isfinite(b) else "-" for b in (row.round_bound, row.rest_bound)
        ]
        printed.add_row(plain(row.rule), plain(row.regularizer), once, bounds[0], rest, bounds[1])
    return printed


def _kept(path: Path, size: Size, options: Options) -> dict[tuple[str, str], Row]:
    """Return the rows of a file that were measured with this size, and may be kept."""
    if not path.is_file():
        return {}
    found: dict[tuple[str, str], Row] = {}
    for values in Table.from_csv(path.read_text()).rows():
        if not may_keep(values, options):
            continue
        unsaid = {"round_bound": math.inf, "rest_bound": math.inf, "commit": ""}
        row = Row(**{**unsaid, **_plain(values)})
        same = (row.strategic, row.directions, row.rounds, row.trials)
        if same == (size.strategic, size.directions, size.rounds, size.trials):
            found[row.rule, row.regularizer] = row
    return found


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value == value}
