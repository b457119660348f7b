"""``sweep PRESET --over KEY=VALUES``: all combinations, a table and a picture of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from experiments.running.options import SWEPT, once, parse_over, parse_seeds, parse_settings
from experiments.running.printing import print_table
from pfl_flower.run.grid import cells
from pfl_flower.run.keys import Scalar
from pfl_flower.run.metrics import spread, telling
from pfl_flower.run.places import changes, named
from pfl_flower.run.preset_claims import NO_CLAIM
from pfl_flower.run.presets import preset, preset_names, settings_of
from pfl_flower.support.console import place, plain
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.folders import writable_folder
from pfl_flower.support.plugins import shown

if TYPE_CHECKING:
    from pfl_flower.run.sweeps import Sweep


def sweep(parsed: argparse.Namespace, console: Console) -> int:
    """Run a sweep, print its table, leave its picture, and return the exit code."""
    if parsed.name not in preset_names():
        raise ConfigError(f"PRESET = {parsed.name}: expected one of {', '.join(preset_names())}")
    over, settings = parse_over(parsed.over), _settings(parsed)
    for key in over:
        if key in settings:
            raise ConfigError(f"--set {key}={settings[key]}: expected no key of --over")
    if not over:
        raise ConfigError(f"--over: expected {SWEPT}, at least once")
    for option in ("jobs", "threads", "nodes"):
        if getattr(parsed, option) < 1:
            raise ConfigError(f"--{option} {getattr(parsed, option)}: expected at least 1")
    seeds = parse_seeds(parsed.seeds)
    base = {key: value for key, value in preset(parsed.name).items() if key != "name"}
    cells({**base, **settings}, over, seeds)
    own = f"{sweep_of(parsed.name, settings)}-over-{'-'.join(over)}"
    folder = writable_folder("--output", parsed.output) / own
    from pfl_flower import api
    from pfl_flower.run.figures import save

    found = api.sweep(
        parsed.name,
        over,
        seeds=seeds,
        jobs=parsed.jobs,
        threads=parsed.threads,
        nodes=parsed.nodes,
        output=folder,
        fresh=parsed.fresh,
        progress=console,
        **settings,
    )
    written = [folder / "sweep.csv", *save(found.plot(), folder, "sweep")]
    show(found, console)
    for path in written:
        console.print(place(path), soft_wrap=True)
    return int(not found.passed)


def show(found: Sweep, console: Console) -> None:
    """Print mean and deviation of each point, and the cells that did not come to a good end."""
    rows = found.rows.rows()
    metrics = telling(rows)
    table = Table(box=SIMPLE)
    for key in found.keys:
        table.add_column(key)
    for name in ("seeds", *metrics):
        table.add_column(name.replace("_", " "), justify="right")
    for point, members in found.points():
        cells_of = [rows[i] for i in members]
        measured = [spread([one[name] for one in cells_of if name in one]) for name in metrics]
        settings = [plain(shown(value)) for value in point.values()]
        table.add_row(*settings, plain(len(members)), *map(plain, measured))
    print_table(console, table)
    for i, row in enumerate(rows):
        if not row["passed"]:
            where = ", ".join(f"{key} = {shown(row.get(key, ''))}" for key in found.keys)
            why = found.errors.get(i, "a check failed, see its summary.json")
            console.print(plain(f"{where}, seed {row['seed']}: {why}", "red"))
    console.print(plain(repr(found)))
    if unclaimed := found.unclaimed:
        console.print(plain(f"{NO_CLAIM}: {unclaimed} of {len(rows)} cells"))


def sweep_of(name: str, settings: Mapping[str, Scalar]) -> str:
    """Return a preset's name, and the settings that all cells have in place of its own."""
    return named(name, changes(settings, settings_of(name)))


def _settings(parsed: argparse.Namespace) -> dict[str, Scalar]:
    options: dict[str, Scalar] = {} if parsed.rounds is None else {"rounds": parsed.rounds}
    if parsed.device != "auto":
        options["device"] = parsed.device
    settings = parse_settings(parsed.settings)
    once(settings, options)
    return {**settings, **options}
