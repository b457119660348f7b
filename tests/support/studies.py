"""Studies as the tests run them: the first seed, the quick sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.running.options import Options
from experiments.studies.measuring import run_study, study_folder
from experiments.studies.study import Study


def run_quick(study: Study, folder: Path, *, control: bool = False) -> dict[str, Any]:
    """Return the summary of a study's quick form."""
    return run_study(study, _quick(folder, control), Console(quiet=True))


def control_metrics(study: Study, folder: Path) -> dict[str, float]:
    """Run the quick form, which passes, and its control, which fails in all that it must.

    Returns what the control measured.
    """
    summary = run_quick(study, folder / "attacked")
    assert summary["passed"], summary["checks"]
    assert (folder / "attacked" / study.name / f"{study.name}.png").exists()
    control = run_quick(study, folder / "control", control=True)
    failed = {check["name"] for check in control["checks"] if not check["passed"]}
    assert failed == set(study.must_fail)
    metrics: dict[str, float] = seed_result(study, folder / "control", control=True)["metrics"]
    return metrics


def seed_result(study: Study, folder: Path, *, control: bool = False) -> dict[str, Any]:
    """Return what the first seed of that left."""
    left = study_folder(study, _quick(folder, control)) / "seed-1" / "result.json"
    found: dict[str, Any] = json.loads(left.read_text())
    return found


def _quick(folder: Path, control: bool) -> Options:
    return Options(output=folder, seeds=(1,), quick=True, control=control, fresh=True)
