"""One page and one table that show our numbers beside the paper's."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.report.entries import Entry, read_entry
from experiments.report.page import page
from experiments.report.text import number
from experiments.studies.catalogue import check_names

HEADS = ("study", "quantity", "where", "paper", "ours", "deviation", "result", "checks", "seeds")
SPECIAL = re.compile(r"([\\`*_\[\]<>|~$&])")


def report(output: Path, names: Sequence[str], console: Console) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md`` into the folder, of what it holds of the studies.

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
    entries = [read_entry(output, name) for name in names]
    paths = output / "report.html", output / "report.md"
    output.mkdir(parents=True, exist_ok=True)
    for path, text in zip(paths, (page(entries), markdown(entries)), strict=True):
        _write(path, text)
    for entry in entries:
        if entry.status != "passed":
            console.print(
                f"{entry.name}: {entry.status}  {entry.problem}".rstrip(), markup=False, style="red"
            )
    return paths


def markdown(entries: Sequence[Entry]) -> str:
    """Return a table with a row for each number that the paper prints, and one without any."""
    rows = [HEADS, tuple("---" for _ in HEADS)]
    rows += [tuple(map(plain, cells)) for entry in entries for cells in _rows(entry)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def plain(text: str) -> str:
    r"""Return the text such that Markdown shows it as it is, in one line.

    >>> print(plain("|x_1| < 2"))
    \|x\_1\| \< 2
    """
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _rows(entry: Entry) -> list[tuple[str, ...]]:
    seeds = entry.summary["seeds"] if entry.summary is not None else []
    result = " ".join([entry.status, *(f"({mark})" for mark in entry.marks)])
    ending = result, entry.checks, ", ".join(map(str, seeds)) or "-"
    if not entry.study.printed:
        return [(entry.name, entry.study.title, "-", "-", "-", "-", *ending)]
    return [
        (
            entry.name,
            one.printed.what,
            one.printed.where,
            number(one.printed.value),
            one.ours,
            one.deviation,
            *ending,
        )
        for one in entry.comparisons
    ]


def _write(path: Path, text: str) -> None:
    """Write in one move: a reader sees the old file or the new one."""
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
