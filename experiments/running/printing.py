"""Tables for a person at a terminal, and for a file or a pipe, which have no width."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

WIDEST = 1000


def print_table(console: Console, table: Table) -> None:
    """Print a table as wide as the terminal, or as it wants to be where there is none."""
    if console.is_terminal:
        console.print(table)
        return
    wanted = Measurement.get(console, console.options.update(width=WIDEST), table).maximum
    Console(file=console.file, width=max(wanted, console.width)).print(table)
