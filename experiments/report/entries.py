"""What the report says of a study, read from what the study left behind."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.report.kept import Kept, Status
from experiments.report.summary import read_summary
from experiments.report.text import Block, command, prose
from experiments.studies.catalogue import STUDIES
from experiments.studies.judging import changed, finals_of
from experiments.studies.reproduce import ERROR_FILE
from experiments.studies.standing import Compared, overall
from experiments.studies.study import Study, find_study
from experiments.studies.wording import Measured, NotMeasuredError
from pfl_flower.run.preset_claims import NO_CLAIM

GROUPS = {
    "experiments.paper": "The paper's figures and tables",
    "experiments.theory": "The paper's theorems, on small problems",
}
BEYOND = "Beyond the paper"
"""The headings, by where a study comes from: in this order, and last of those from elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Entry(Kept):
    """One study in the report.

    Attributes
    ----------
    study : Study
        What it is.
    group : str
        The heading under which it stands.
    setting : tuple of Block
        How it is measured, or what its module says of it.
    """

    study: Study
    group: str
    setting: tuple[Block, ...]

    @property
    def status(self) -> Status:
        """One word; ``error`` also for numbers from before a run that broke off."""
        if self.summary is not None and not self.problem:
            return "passed" if self.summary.passed else "FAILED"
        if (self.folder / ERROR_FILE).exists():
            return "error"
        return "unreadable" if self.problem else "not run"

    @property
    def marks(self) -> list[str]:
        """What sets these numbers apart from the study's own: ``quick``, ``control``, settings."""
        config = self.summary.config if self.summary is not None else {}
        own = [NO_CLAIM] if changed(self.study, config) else []
        return [key for key in ("quick", "control") if config.get(key)] + own

    @property
    def words(self) -> str:
        """What was measured, in the study's words."""
        if self.summary is None:
            return "Nothing yet."
        values = {name: metric.values for name, metric in self.summary.metrics.items()}
        try:
            return self.study.words(Measured(values)) or "See the checks."
        except NotMeasuredError as error:
            return f"See the checks: {error}."

    @property
    def comparisons(self) -> list[Compared]:
        """The paper's numbers and statements beside ours, in the study's order."""
        if self.summary is None or "control" in self.marks or NO_CLAIM in self.marks:
            return []
        return self.study.compare(finals_of(self.summary.model_dump()))

    @property
    def standing(self) -> str:
        """How ours stands to the paper's: the worst of all."""
        found = self.comparisons
        return overall(found) if found else ""

    @property
    def apart(self) -> list[Compared]:
        """What is not as in the paper, and what was not measured."""
        return [one for one in self.comparisons if one.standing != "reproduced"]

    @property
    def must_fail(self) -> frozenset[str]:
        """Names of the checks that fail in the control; none elsewhere."""
        if self.summary is None or "control" not in self.marks:
            return frozenset()
        kept = self.summary.success
        return frozenset(self.study.must_fail if kept is None else kept)

    @property
    def command(self) -> str:
        """What makes these numbers again."""
        if self.summary is None:
            return command(self.name, {})
        seeds = self.summary.seeds
        other = None if seeds == self.study.seeds else seeds
        return command(self.name, self.summary.config, other)

    @property
    def seconds(self) -> float:
        """What all seeds took: the summary's own clock does not count those kept from before."""
        own = self.summary.seconds if self.summary is not None else 0.0
        return max(own, sum(float(result["seconds"]) for result in self._seed_results()))

    @property
    def commits(self) -> list[str]:
        """Which versions of the code measured the seeds: ``--keep`` can make them several."""
        if self.summary is None:
            return []
        measured = [str(result["commit"]) for result in self._seed_results()]
        return list(dict.fromkeys([*measured, self.summary.commit]))

    def _seed_results(self) -> list[dict[str, Any]]:
        """Return the results of single seeds that are still there and belong to the summary."""
        if self.summary is None:
            return []
        asked = self.summary.config
        paths = [self.folder / f"seed-{seed}" / "result.json" for seed in self.summary.seeds]
        return [result for path in paths if (result := _seed_result(path, asked)) is not None]


def read_entry(output: Path, name: str) -> Entry:
    """Return what ``output/name`` holds of the study."""
    study, folder = find_study(name), output / name
    module = STUDIES[name].place.partition(":")[0]
    about = study.setting or importlib.import_module(module).__doc__ or ""
    summary, problem = read_summary(folder / "summary.json")
    trace = folder / ERROR_FILE
    if trace.exists() and (summary is None or _newer(trace, folder / "summary.json")):
        problem = trace.read_text(errors="replace").partition("\n")[0] or "no reason was kept"
    return Entry(
        name=name,
        study=study,
        group=GROUPS.get(module.rpartition(".")[0], BEYOND),
        folder=folder,
        setting=prose(inspect.cleandoc(about)),
        summary=summary,
        problem=problem,
    )


def _newer(one: Path, other: Path) -> bool:
    return one.stat().st_mtime > other.stat().st_mtime


def _seed_result(path: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        own = {key: value for key, value in result["asked"].items() if key != "seed"}
        return result if own == asked and {"seconds", "commit"} <= set(result) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
