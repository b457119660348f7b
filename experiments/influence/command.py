"""The command ``influence``: the study, of the rules and regularisers that are named."""

from __future__ import annotations

import argparse
from dataclasses import replace

from rich.console import Console

from experiments.influence.study import HOLDS, STRATEGIC, STUDY, check
from experiments.running.preset_runs import show
from experiments.running.run_command import options_of
from experiments.studies.measuring import run_study, study_folder
from pfl_flower.support.errors import ConfigError


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Measure what the command line names and return its exit code.

    Raises
    ------
    ConfigError
        If a rule or a regulariser does not admit such a run, in its own words.
    """
    if parsed.jobs < 1:
        raise ConfigError(f"--jobs {parsed.jobs}: expected at least 1")
    asked = {"rule": ",".join(parsed.rule), "regularizer": ",".join(parsed.regularizer)}
    asked = {name: value for name, value in asked.items() if value}
    if parsed.strategic != STRATEGIC:
        asked["strategic"] = str(parsed.strategic)
    options = replace(options_of(parsed), jobs=parsed.jobs, study=asked)
    check(options)
    study = STUDY
    if asked:
        # What is claimed of any rule and regulariser; in a folder that names them.
        study = replace(STUDY, always=(HOLDS,), paper=(), brought=frozenset(asked), folder=asked)
    summary = run_study(study, options, console)
    show(summary, study_folder(study, options), console)
    return int(not summary["passed"])
