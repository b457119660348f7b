"""What the report says of any folder of results, a study's or a run's of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.report.pictures import Picture, read_pictures
from experiments.report.summary import JudgedCheck, Summary
from experiments.report.text import duration, short_commit
from experiments.studies.control import Word, word

Status = Literal["passed", "FAILED", "error", "unreadable", "unfinished", "not run"]


@dataclass(frozen=True)
class CheckRow:
    """A check as it is shown.

    Attributes
    ----------
    check : JudgedCheck
        What was judged.
    word : Word
        What is said of it.
    must_fail : bool
        Whether it is one that the control must make fail.
    """

    check: JudgedCheck
    word: Word
    must_fail: bool = False

    @property
    def verdict(self) -> str:
        """Whether the check held."""
        return self.word.text

    @property
    def fine(self) -> bool:
        """Whether it came out as it should."""
        return self.word.fine


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A folder of results.

    Attributes
    ----------
    name : str
        The folder's.
    folder : Path
        Where it is.
    summary : Summary or None
        ``summary.json``, if there is one that can be read.
    problem : str
        Why there is none, or what a later run ended with.
    """

    name: str
    folder: Path
    summary: Summary | None
    problem: str = ""

    @property
    def must_fail(self) -> frozenset[str]:
        """Names of the checks that should fail here: none."""
        return frozenset()

    @property
    def check_rows(self) -> list[CheckRow]:
        """The checks, in order."""
        checks = self.summary.checks if self.summary is not None else ()
        how = {"control": bool(self.must_fail), "success": self.must_fail}
        return [
            CheckRow(one, word(one.name, one.passed, how), one.name in self.must_fail)
            for one in checks
        ]

    @property
    def missed(self) -> list[CheckRow]:
        """The checks that did not come out as they should."""
        return [row for row in self.check_rows if not row.fine]

    @property
    def checks(self) -> str:
        """How many checks passed; where some must fail, how many of those did."""
        rows = self.check_rows
        if self.must_fail:
            failed = sum(row.fine for row in rows if row.must_fail)
            return f"{failed} of {len(self.must_fail)} fail, as they must"
        said = f"{sum(row.check.passed for row in rows)} of {len(rows)} passed" if rows else "-"
        absent = len(self.summary.unjudged) if self.summary is not None else 0
        return f"{said}, {absent} not judged: measured before they were made" if absent else said

    @property
    def left_out(self) -> list[str]:
        """What was there and did not count, a line for each kind."""
        return [str(one) for one in self.summary.left_out] if self.summary is not None else []

    @property
    def pictures(self) -> list[Picture]:
        """Every picture beside the summary."""
        return read_pictures(self.folder)

    @property
    def seeds(self) -> str:
        """The seeds, as text."""
        return ", ".join(map(str, self.summary.seeds)) if self.summary is not None else "-"

    @property
    def seconds(self) -> float:
        """What all seeds took."""
        return self.summary.seconds if self.summary is not None else 0.0

    @property
    def commits(self) -> list[str]:
        """Which versions of the code measured this."""
        return [self.summary.commit] if self.summary is not None else []

    @property
    def made(self) -> str:
        """Seeds, time and commits in one line, for a reader who wants no details."""
        if self.summary is None:
            return "-"
        count = len(self.summary.seeds)
        seeds = f"{count} seed{'' if count == 1 else 's'}"
        return f"{seeds}, {duration(self.seconds)}, commit {short_commits(self.commits)}"

    @property
    def machines(self) -> list[str]:
        """What this was measured on."""
        return [self.summary.hardware] if self.summary is not None else []

    @property
    def facts(self) -> dict[str, str]:
        """How this was made, in full."""
        if self.summary is None:
            return {}
        versions = self.summary.versions.items()
        return {
            "seeds": self.seeds,
            "time": f"{duration(self.seconds)} for all seeds",
            "hardware": self.summary.hardware,
            "device": self.summary.device,
            "versions": ", ".join(f"{name} {text}" for name, text in versions),
            "commit": ", ".join(self.commits),
        }


def short_commits(commits: Sequence[str]) -> str:
    """Return the commits in short, or a dash where there are none."""
    return ", ".join(map(short_commit, commits)) or "-"


def origins(kept: Sequence[Kept]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return which results each commit, and each machine, has made."""
    commits: dict[str, list[str]] = {}
    machines: dict[str, list[str]] = {}
    for one in kept:
        for commit in one.commits:
            commits.setdefault(commit, []).append(one.name)
        for machine in one.machines:
            machines.setdefault(machine, []).append(one.name)
    return commits, machines
