r"""The page and the table, from templates: text cannot become markup in either.

On the page Jinja escapes whatever is put in; in the table ``plain`` does, on every expression.
Neither lets through a character that does not show.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from experiments.report.entries import BEYOND, GROUPS, Entry, read_entry
from experiments.report.kept import Status, origins
from experiments.report.runs import RunEntry, own_folders, read_run
from experiments.report.sweeps import SweepEntry, read_sweep
from experiments.report.text import number, short_commit
from experiments.studies.standing import Standing
from pfl_flower.support.foreign_text import legible, one_line

HEADINGS = (*GROUPS.values(), BEYOND)
TENS, POWER = re.compile(r"(?<=\d)e([+-]?)0*(\d+)\b"), re.compile(r"\^(-?\d+(?:\.\d+)?)")
"""Matched in escaped text: neither can begin or end inside a character reference."""
LONGEST = 5000
"""Characters of what is put in at one place."""
SPECIAL = re.compile(r"([\\`*_\[\]<>|~$&])")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is shown: the studies that were asked for, and the runs that were found.

    Attributes
    ----------
    studies : sequence of Entry
        In the catalogue's order.
    runs, sweeps : sequence of RunEntry, SweepEntry
        By name.
    """

    studies: Sequence[Entry]
    runs: Sequence[RunEntry]
    sweeps: Sequence[SweepEntry]

    @property
    def counts(self) -> dict[Status, int]:
        """How many studies ended how."""
        found = [entry.status for entry in self.studies]
        return {word: found.count(word) for word in get_args(Status) if word in found}

    @property
    def standings(self) -> dict[Standing, int]:
        """How many studies stand how to the paper; those that were not compared do not count."""
        found = [entry.standing for entry in self.studies]
        return {word: found.count(word) for word in get_args(Standing) if word in found}

    @property
    def quick(self) -> int:
        """How many of the studies were measured in their quick form."""
        return sum("quick" in entry.marks for entry in self.studies)

    @property
    def groups(self) -> dict[str, list[Entry]]:
        """The studies by heading."""
        of = {group: [e for e in self.studies if e.group == group] for group in HEADINGS}
        return {group: entries for group, entries in of.items() if entries}

    @property
    def commits(self) -> dict[str, list[str]]:
        """Which results each version of the code has made."""
        return origins([*self.studies, *self.runs, *self.sweeps])[0]

    @property
    def machines(self) -> dict[str, list[str]]:
        """Which results each machine has made."""
        return origins([*self.studies, *self.runs, *self.sweeps])[1]


def read_report(output: Path, names: Sequence[str]) -> Report:
    """Return what a folder holds of these studies, and all runs and sweeps of one's own in it."""
    own = own_folders(output)
    runs, sweeps = map(read_run, own), map(read_sweep, own)
    return Report(
        studies=[read_entry(output, name) for name in names],
        runs=[run for run in runs if run is not None],
        sweeps=[sweep for sweep in sweeps if sweep is not None],
    )


def plain(text: object) -> str:
    r"""Return the text such that Markdown shows it as it is, in one line.

    >>> print(plain("|x_1| < 2"))
    \|x\_1\| \< 2
    """
    return SPECIAL.sub(r"\\\1", one_line(str(text), LONGEST))


def shown(text: Any) -> Any:
    """Return what Jinja may escape: text in which every character shows; markup is ready."""
    if isinstance(text, Markup) or not isinstance(text, str):
        return text
    return legible(text) if len(text) <= LONGEST else one_line(text, LONGEST)


def maths(text: str) -> Markup:
    """Return the text escaped, with powers raised: of ten, and those written after a ``^``.

    >>> maths("2e-08 < n^-0.6")
    Markup('2·10<sup>-8</sup> &lt; n<sup>-0.6</sup>')
    """
    # As str: what is put into a Markup by joining, which re does, would be escaped once more.
    tens = TENS.sub(r"·10<sup>\1\2</sup>", str(escape(shown(text))))
    return Markup(POWER.sub(r"<sup>\1</sup>", tens))


def page(report: Report) -> str:
    """Return the page: the studies as cards, one's own runs, and where all of it comes from."""
    return _pages().get_template("page.html.j2").render(report=report)


def table(report: Report) -> str:
    """Return the same as Markdown: a row for each study, number of the paper's and run."""
    return _tables().get_template("report.md.j2").render(report=report)


@cache
def _pages() -> Environment:
    return _environment(autoescape=True, finalize=shown)


@cache
def _tables() -> Environment:
    return _environment(finalize=plain)


def _environment(**options: Any) -> Environment:
    """Return what renders the templates; a name that nothing has is an error, not nothing."""
    environment = Environment(
        loader=PackageLoader(__package__),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters |= {"number": number, "short": short_commit, "maths": maths}
    return environment
