"""Runs of one's own: every folder beside the studies' that a run left its results in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.report.kept import Kept, Status
from experiments.report.summary import Summary, read_summary
from experiments.report.text import number
from experiments.studies.catalogue import STUDIES
from experiments.studies.variants import SHARED
from experiments.studies.wording import Measured
from pfl_flower.run.config import parse_config
from pfl_flower.run.preset_claims import NO_CLAIM
from pfl_flower.run.presets import description, preset_names

TOLD_ELSEWHERE = frozenset({"name", "output-dir", "seed"})
"""Keys that are no setting of the run: its folder and its seeds are shown anyway."""
FIRST = {
    "accuracy_true": ("accuracy on true labels", "{:.1%}"),
    "accuracy_target": ("on the attacker's labels", "{:.1%}"),
    "distance_to_target": ("distance of rho to the target", "{:.3g}"),
}
"""The metrics that a reader looks for first: what they are of, and how they are written."""


@dataclass(frozen=True, kw_only=True)
class RunEntry(Kept):
    """One run, of one or several seeds.

    Attributes
    ----------
    about : str
        What its preset says of itself; empty if it is none.
    settings : mapping
        The keys that differ from their defaults, as text.
    rounds : int
        Rounds that a run without a summary has kept; 0 if there is one.
    """

    about: str
    settings: Mapping[str, str]
    rounds: int

    @property
    def status(self) -> Status:
        """One word."""
        if self.summary is not None:
            return "passed" if self.summary.passed else "FAILED"
        return "unreadable" if self.problem else "unfinished"

    @property
    def marks(self) -> list[str]:
        """That nothing is claimed of these settings, where that is so."""
        claims = "" if self.summary is None else self.summary.claims
        return [claims] if claims == NO_CLAIM else []

    @property
    def words(self) -> str:
        """What was measured, mean over seeds."""
        if self.summary is None:
            return f"{self.rounds} rounds are kept, and no summary."
        found = Measured({name: metric.values for name, metric in self.summary.metrics.items()})
        said = [
            f"{label} {form.format(found.mean(key))}"
            for key, (label, form) in FIRST.items()
            if key in found.values
        ]
        if not said:
            said = [f"{key} {number(found.mean(key))}" for key in list(found.values)[:3]]
        return f"In the end: {', '.join(said)}." if said else "See the checks."


def own_folders(output: Path) -> list[Path]:
    """Return the folders directly in ``output`` that are no study's, by name."""
    if not output.is_dir():
        return []
    taken = {*STUDIES, SHARED}
    folders = [path for path in output.iterdir() if path.is_dir() and path.name not in taken]
    return [path for path in sorted(folders) if path.name[0] != "."]


def read_run(folder: Path) -> RunEntry | None:
    """Return the run whose results a folder holds; None if it holds none."""
    rounds = folder / "rounds.csv"
    summary, problem = read_summary(folder / "summary.json")
    if summary is None and not problem and not rounds.is_file():
        return None
    kept = 0 if summary is not None else _count(rounds)
    return RunEntry(
        name=folder.name,
        folder=folder,
        summary=summary,
        problem=problem,
        about=description(folder.name) if folder.name in preset_names() else "",
        settings=_settings(summary),
        rounds=kept,
    )


def _count(rounds: Path) -> int:
    """Return the number of rounds in a table whose first line holds the columns."""
    try:
        return max(0, len(rounds.read_bytes().splitlines()) - 1)
    except OSError:
        return 0


def _settings(summary: Summary | None) -> dict[str, str]:
    usual = parse_config({}).flat()
    config: Mapping[str, Any] = summary.config if summary is not None else {}
    own = {key: value for key, value in config.items() if key not in TOLD_ELSEWHERE}
    return {key: _toml(value) for key, value in own.items() if usual.get(key) != value}


def _toml(value: object) -> str:
    """Return a setting as it is written in a preset or after ``--set``, quotes left out."""
    return str(value).lower() if isinstance(value, bool) else str(value)
