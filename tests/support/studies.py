"""Studies as the tests run them: the first seed, the quick sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.running.options import Options
from experiments.studies.measuring import run_study
from experiments.studies.study import Study


def run_quick(study: Study, folder: Path, *, control: bool = False) -> dict[str, Any]:
    """Return the summary of a study's quick form."""
    options = Options(output=folder, seeds=(1,), quick=True, control=control, fresh=True)
    return run_study(study, options, Console(quiet=True))
