"""The command: measure, print the table, and leave it as JSON, CSV and a figure."""

from __future__ import annotations

import argparse
import csv
import io
import math
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.benchmark.arguments import COMPARISONS
from experiments.benchmark.side_by_side import Comparison, Conditions
from pfl_flower.run.figures import PALETTE, save
from pfl_flower.run.problem import choose_device
from pfl_flower.run.results import write_json
from pfl_flower.support.console import place
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.files import replace_file
from pfl_flower.support.folders import writable_folder
from pfl_flower.support.hardware import hardware
from pfl_flower.support.plugins import find
from pfl_flower.support.versions import commit, versions


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Measure as the command line asks and return its exit code.

    Raises
    ------
    ConfigError
        If a name is unknown or there is no repeat.
    """
    names = list(dict.fromkeys([*parsed.names, *parsed.row])) or list(COMPARISONS)
    for name in names:
        if name not in COMPARISONS:
            raise ConfigError(f"NAME = {name}: expected one of {', '.join(COMPARISONS)}")
    if parsed.repeats < 1:
        raise ConfigError(f"--repeats {parsed.repeats}: expected at least 1")
    folder = writable_folder("--output", parsed.output) / "benchmark"
    device = choose_device(parsed.device).type
    rows: list[Comparison] = []
    took: dict[str, float] = {}
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("benchmark")
        conditions = Conditions(
            quick=parsed.quick,
            device=device,
            repeats=1 if parsed.quick else parsed.repeats,
            say=lambda line: bar.update(task, description=line),
        )
        for name in names:
            began = time.perf_counter()
            bar.reset(task, description=name)
            for row in find("NAME", name, COMPARISONS[name])(conditions):
                rows.append(row)
                took[name] = time.perf_counter() - began
                # After each, so that what was measured is there if the next one is stopped.
                _write(folder, rows, conditions, device, took)
                bar.console.print(_line(name, row, took[name]), soft_wrap=True, markup=False)
    _print(rows, console)
    for path in sorted(folder.iterdir()):
        console.print(place(path), soft_wrap=True)
    return 0


def _line(name: str, row: Comparison, seconds: float) -> str:
    """Return a row as it is measured, with the seconds that its comparison has taken so far."""
    parts = [f"{name}, {seconds:.0f} s", row.what, row.ours]
    parts += [row.rival] if math.isnan(row.ratio) else [row.rival, _ratio(row)]
    return ": ".join((parts[0], "; ".join(parts[1:])))


def _ratio(row: Comparison) -> str:
    return f"{row.ratio:.3g} ± {row.spread:.1g}"


def _write(
    folder: Path,
    rows: Sequence[Comparison],
    conditions: Conditions,
    device: str,
    took: Mapping[str, float],
) -> None:
    content = {
        "rows": [asdict(row) for row in rows],
        "seconds": took,
        "curves": conditions.points,
        "quick": conditions.quick,
        "repeats": conditions.repeats,
        "hardware": hardware(device),
        "versions": versions(),
        "commit": commit(),
    }
    write_json(folder / "benchmark.json", content)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(asdict(rows[0])))
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    replace_file(folder / "benchmark.csv", table.getvalue())
    _draw(rows, conditions.points, folder)


def _print(rows: Sequence[Comparison], console: Console) -> None:
    table = Table(title=f"benchmark on {hardware()}")
    for column in ("", "work", "ours", "the alternative", "ratio", "note"):
        table.add_column(column, justify="right" if column == "ratio" else "left", overflow="fold")
    for row in rows:
        shown = "" if math.isnan(row.ratio) else _ratio(row)
        table.add_row(row.key, row.what, row.ours, row.rival, shown, row.note)
    console.print(table)


def _draw(rows: Sequence[Comparison], curves: Mapping[str, Any], folder: Path) -> None:
    """Draw the ratios, the growth and the ways to the target."""
    shown = [row for row in rows if not math.isnan(row.ratio) and row.key != "c"][::-1]
    figure = Figure(figsize=(15.0, 1.5 + 0.55 * len(shown)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.2, 1.0, 1.0))
    ratios, spreads = [row.ratio for row in shown], [row.spread for row in shown]
    bars = left.barh(range(len(shown)), ratios, xerr=spreads, color=PALETTE[0])
    left.bar_label(
        bars,
        [f"{ratio:.2g} ± {spread:.1g}" for ratio, spread in zip(ratios, spreads, strict=True)],
        padding=3,
    )
    left.set_yticks(range(len(shown)), [_label(row) for row in shown], fontsize="small")
    left.axvline(1.0, color="black", linewidth=0.8)
    left.set(xlabel="the alternative's cost over ours", xscale="log")
    left.set_xlim(right=8 * max((row.ratio + row.spread for row in shown), default=1.0))
    left.set_visible(bool(shown))
    for colour, (name, curve) in enumerate(curves.items()):
        if name.startswith("growth"):
            label = name.removeprefix("growth with ")
            middle.plot(curve["size"], curve["seconds"], "o-", color=PALETTE[colour], label=label)
        else:
            label = name.removeprefix("distance, ")
            right.plot(curve["seconds"], curve["distance"], color=PALETTE[colour], label=label)
    middle.set(xlabel="users, points, or dimension", ylabel="seconds a round")
    right.set(xlabel="seconds", ylabel="distance of rho to the target")
    for axes in (middle, right):
        axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        axes.set_visible(bool(axes.lines))
        if axes.lines:
            axes.legend(frameon=False)
    save(figure, folder, "benchmark")


def _label(row: Comparison) -> str:
    what = textwrap.fill(f"({row.key}) {row.what}", 48)
    return f"{what}\nagainst {row.rival.split(':')[0]}"
