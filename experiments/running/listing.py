"""``list``: the names that ``run`` knows, each with one line of what it shows."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from experiments.studies.catalogue import STUDIES
from pfl_flower.run.presets import description, preset_names


def show_names(parsed: argparse.Namespace, console: Console) -> int:
    """Print presets and studies."""
    presets = {name: description(name) for name in preset_names()}
    studies = {name: listed.title for name, listed in STUDIES.items()}
    for title, entries in (("presets", presets), ("studies", studies)):
        table = Table(title=f"{title}: python -m experiments run NAME")
        table.add_column("name", no_wrap=True)
        table.add_column("what it shows")
        for name, text in entries.items():
            table.add_row(name, text)
        console.print(table)
    return 0
