"""What the report says of a study, read from what the study left behind."""

from __future__ import annotations

import importlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.report.text import command, spread
from experiments.studies.catalogue import STUDIES
from experiments.studies.reproduce import ERROR_FILE
from experiments.studies.study import Printed, Study, find_study

Status = Literal["passed", "FAILED", "error", "unreadable", "not run"]

NEEDED = frozenset(
    {
        "seeds",
        "metrics",
        "checks",
        "passed",
        "config",
        "versions",
        "commit",
        "device",
        "seconds",
    }
)
"""Entries without which a ``summary.json`` is not one of ours."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A number that the paper prints, and ours over the seeds.

    Attributes
    ----------
    printed : Printed
        The paper's.
    mean : float or None
        Ours; absent if the study was not run, or has no such metric.
    std : float or None
        Over seeds; absent if there is one seed.
    """

    printed: Printed
    mean: float | None = None
    std: float | None = None

    @property
    def ours(self) -> str:
        """Mean and standard deviation, as text."""
        if self.mean is None:
            return "not measured"
        return spread(self.mean, self.std)

    @property
    def deviation(self) -> str:
        """Ours minus the paper's, and that as a share of the paper's."""
        if self.mean is None:
            return "-"
        difference = self.mean - self.printed.value
        if not self.printed.value or not math.isfinite(difference):
            return f"{difference:+.3g}"
        return f"{difference:+.3g} ({100 * difference / abs(self.printed.value):+.1f} %)"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One study in the report.

    Attributes
    ----------
    name : str
        On the command line.
    study : Study
        What it is.
    folder : Path
        Of its results.
    setting : str
        How it is measured, or what its module says of it.
    summary : mapping or None
        ``summary.json``, if there is one that can be read.
    problem : str
        Why there is none, or what a later run ended with.
    """

    name: str
    study: Study
    folder: Path
    setting: str
    summary: Mapping[str, Any] | None
    problem: str = ""

    @property
    def status(self) -> Status:
        """One word; ``error`` also for numbers from before a run that broke off."""
        if self.summary is not None and not self.problem:
            return "passed" if self.summary["passed"] else "FAILED"
        if (self.folder / ERROR_FILE).exists():
            return "error"
        return "unreadable" if self.problem else "not run"

    @property
    def marks(self) -> list[str]:
        """What sets these numbers apart from the study's own: ``quick``, ``control``."""
        config = self.summary["config"] if self.summary is not None else {}
        return [key for key in ("quick", "control") if config.get(key)]

    @property
    def comparisons(self) -> list[Comparison]:
        """The paper's numbers and ours, in the study's order."""
        return [_compare(printed, self.summary) for printed in self.study.printed]

    @property
    def must_fail(self) -> frozenset[str]:
        """Names of the checks that fail in the control; none elsewhere."""
        if self.summary is None or "control" not in self.marks:
            return frozenset()
        return frozenset(self.summary.get("success", self.study.success))

    @property
    def checks(self) -> str:
        """How many checks passed; in the control, how many failed as they must."""
        if self.summary is None:
            return "-"
        checks = self.summary["checks"]
        if "control" in self.marks:
            failed = sum(not c["passed"] for c in checks if c["name"] in self.must_fail)
            return f"{failed} of {len(self.must_fail)} fail, as they must"
        return f"{sum(bool(check['passed']) for check in checks)} of {len(checks)} passed"

    @property
    def pictures(self) -> list[Path]:
        """Every PNG of the study, by name."""
        return sorted(path for path in self.folder.glob("*.png") if path.name[0] != ".")

    @property
    def command(self) -> str:
        """What makes these numbers again."""
        if self.summary is None:
            return command(self.name, {})
        seeds = tuple(self.summary["seeds"])
        other = None if seeds == self.study.seeds else seeds
        return command(self.name, self.summary["config"], other)

    @property
    def seconds(self) -> float:
        """What all seeds took: the summary's own clock does not count those kept from before."""
        own = float(self.summary["seconds"]) if self.summary is not None else 0.0
        return max(own, sum(float(result["seconds"]) for result in self._seeds()))

    @property
    def commits(self) -> list[str]:
        """Which versions of the code measured the seeds: ``--keep`` can make them several."""
        if self.summary is None:
            return []
        measured = [str(result["commit"]) for result in self._seeds()]
        return list(dict.fromkeys([*measured, str(self.summary["commit"])]))

    def _seeds(self) -> list[dict[str, Any]]:
        """Return the results of single seeds that are still there and belong to the summary."""
        if self.summary is None:
            return []
        asked = self.summary["config"]
        paths = [self.folder / f"seed-{seed}" / "result.json" for seed in self.summary["seeds"]]
        return [result for path in paths if (result := _seed_result(path, asked)) is not None]


def read_entry(output: Path, name: str) -> Entry:
    """Return what ``output/name`` holds of the study."""
    study, folder = find_study(name), output / name
    module = importlib.import_module(STUDIES[name].place.partition(":")[0])
    summary, problem = _read_summary(folder / "summary.json")
    trace = folder / ERROR_FILE
    if trace.exists() and (summary is None or _newer(trace, folder / "summary.json")):
        problem = trace.read_text().partition("\n")[0] or "no reason was kept"
    return Entry(
        name=name,
        study=study,
        folder=folder,
        setting=inspect.cleandoc(study.setting or module.__doc__ or ""),
        summary=summary,
        problem=problem,
    )


def _read_summary(path: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        summary = json.loads(path.read_text())
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError) as error:
        return None, f"{path.name} cannot be read: {error}"
    if not isinstance(summary, dict) or not NEEDED <= set(summary):
        lacks = sorted(NEEDED - set(summary))
        return None, f"{path.name} lacks {', '.join(lacks)}"
    return summary, ""


def _newer(one: Path, other: Path) -> bool:
    return one.stat().st_mtime > other.stat().st_mtime


def _compare(printed: Printed, summary: Mapping[str, Any] | None) -> Comparison:
    metric = summary["metrics"].get(printed.metric) if summary is not None else None
    if metric is None:
        return Comparison(printed=printed)
    several = len(metric["values"]) > 1
    return Comparison(
        printed=printed, mean=float(metric["mean"]), std=float(metric["std"]) if several else None
    )


def _seed_result(path: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        own = {key: value for key, value in result["asked"].items() if key != "seed"}
        return result if own == asked and {"seconds", "commit"} <= set(result) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def machines(entries: Sequence[Entry]) -> list[str]:
    """Return what the studies were measured on, each once."""
    found = [e.summary["hardware"] for e in entries if e.summary and "hardware" in e.summary]
    return list(dict.fromkeys(map(str, found)))


def commits(entries: Sequence[Entry]) -> list[str]:
    """Return the versions of the code that measured the studies, each once."""
    return list(dict.fromkeys(made for entry in entries for made in entry.commits))
