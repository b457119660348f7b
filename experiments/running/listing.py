"""``list``: the names that ``run`` and its ``--set`` know, each with one line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from experiments.running.parser import called
from experiments.studies.catalogue import STUDIES
from pfl_flower.run.presets import description, preset_names
from pfl_flower.run.tables import TABLES
from pfl_flower.support.console import plain


def show_names(parsed: argparse.Namespace, console: Console) -> int:
    """Print presets and studies, and what the keys of a run that name something can be."""
    presets = {name: description(name) for name in preset_names()}
    studies = {name: listed.title for name, listed in STUDIES.items()}
    for title, entries in (("presets", presets), ("studies", studies)):
        _show(console, f"{title}: {called()} run NAME", "what it shows", entries)
    for point in TABLES:
        members = {name: f"{row.text}{row.cited}" for name, row in point.items()}
        members["..."] = point.own.text
        title = f"{point.point}: {called()} run NAME --set {point.point}=..."
        _show(console, title, "what it is", members)
    return 0


def _show(console: Console, title: str, heading: str, entries: Mapping[str, str]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column(heading)
    for name, text in entries.items():
        table.add_row(plain(name), plain(text))
    console.print(table)
