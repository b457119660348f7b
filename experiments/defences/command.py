"""The command ``defences``: the study, side by side and in parts; or a rule of one's own in it."""

from __future__ import annotations

import argparse
from dataclasses import replace

from rich.console import Console

from experiments.defences.cells import ROWS_FILE
from experiments.defences.leaderboard import leaderboard
from experiments.defences.plan import Plan
from experiments.defences.study import STUDY
from experiments.running.options import Options
from experiments.running.preset_runs import show
from experiments.running.run_command import options_of
from experiments.studies.measuring import run_study, study_folder
from pfl_flower.support.errors import ConfigError


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Run what is asked, show what came of it, and return the exit code.

    Raises
    ------
    ConfigError
        If a scene is unknown, or the rule is none that can be used: before anything is run.
    """
    if parsed.so_far and parsed.rule is not None:
        raise ConfigError(f"--so-far: expected no --rule {parsed.rule}")
    if parsed.jobs < 1:
        raise ConfigError(f"--jobs {parsed.jobs}: expected at least 1")
    asked = {"scenes": parsed.scenes} if parsed.scenes else {}
    options, study = replace(options_of(parsed), jobs=parsed.jobs, study=asked), STUDY
    Plan.of(quick=options.quick, scenes=parsed.scenes)
    if parsed.so_far:
        options = replace(options, study={**asked, "so-far": _runs_there(options)})
    if parsed.rule is not None:
        study, options = leaderboard(parsed.rule, options)
    summary = run_study(study, options, console)
    show(summary, study_folder(study, options), console)
    return int(not summary["passed"])


def _runs_there(options: Options) -> str:
    """Return how many runs the folder holds, so that what was said of fewer is not kept."""
    files = study_folder(STUDY, options).glob(f"seed-*/{ROWS_FILE}")
    count = sum(len(path.read_bytes().splitlines()) for path in files)
    return f"{count} runs"
