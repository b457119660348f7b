"""``compare DIR DIR ...``: what differs between runs, and what came of it."""

from __future__ import annotations

import argparse

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from experiments.running.printing import print_table
from pfl_flower.support.console import place, plain
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.folders import own_path, writable_folder


def compare(parsed: argparse.Namespace, console: Console) -> int:
    """Print the table of the runs, write table and picture if a folder is named, return 0."""
    for folder in parsed.folders:
        if not own_path("DIR", folder).is_dir():
            raise ConfigError(f"DIR = {folder}: expected a folder, and there is none")
    output = writable_folder("--output", parsed.output) if parsed.output else None
    from pfl_flower import api

    found = api.compare(*parsed.folders)
    rows = found.table()
    table = Table(box=SIMPLE)
    for name in rows.columns:
        table.add_column(plain(name.replace("_", " ")), overflow="fold")
    for row in zip(*(rows[name].tolist() for name in rows.columns), strict=True):
        first, *others = row
        table.add_row(plain(str(first).replace("_", " ")), *map(plain, others))
    print_table(console, table)
    if output is not None:
        for path in found.save(output, *parsed.metrics):
            console.print(place(path), soft_wrap=True)
    return 0
