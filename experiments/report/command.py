"""One page and one table: what is claimed, what we measured, and runs of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.report.rendering import page, read_report, table
from experiments.studies.catalogue import check_names
from pfl_flower.support.console import plain
from pfl_flower.support.files import replace_file


def report(output: Path, names: Sequence[str], console: Console) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md`` into the folder, of what it holds.

    A study without results stands in both as not run.

    Returns
    -------
    tuple of Path
        The page and the table.

    Raises
    ------
    ConfigError
        If a name is no study's.
    """
    check_names(names)
    shown = read_report(output, names)
    paths = output / "report.html", output / "report.md"
    for path, text in zip(paths, (page(shown), table(shown)), strict=True):
        replace_file(path, text)
    for entry in shown.studies:
        if entry.status != "passed":
            console.print(plain(f"{entry.name}: {entry.status}  {entry.problem}", "red"))
    return paths
