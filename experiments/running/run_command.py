"""``run``, ``reproduce``, ``report``: what is asked is checked before anything heavy is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.running.options import Options, check_keys, parse_seeds, parse_settings
from experiments.studies.catalogue import STUDIES, check_names
from pfl_flower.run.memory import check_nodes
from pfl_flower.run.presets import preset, preset_names
from pfl_flower.support.console import place
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.folders import own_path, writable_folder

Outcome = tuple[dict[str, Any], Path]
"""A summary, and the folder that it is in."""


def run_one(parsed: argparse.Namespace, console: Console) -> int:
    """Run a preset or a study, show what came of it, and return the exit code."""
    options = options_of(parsed)
    run = _run_study if parsed.name in STUDIES else _run_preset
    summary, folder = run(parsed.name, options, console)
    from experiments.running.preset_runs import show

    show(summary, folder, console)
    return int(not summary["passed"])


def run_studies(parsed: argparse.Namespace, console: Console) -> int:
    """Run the studies that are named, or all, and return the exit code."""
    names, options = parsed.names or list(STUDIES), options_of(parsed)
    check_names(names)
    writable_folder("--output", options.output)
    from experiments.studies.reproduce import reproduce

    outcomes = reproduce(names, options, console, judge=parsed.judge)
    return int(any(outcome.verdict != "passed" for outcome in outcomes))


def report_studies(parsed: argparse.Namespace, console: Console) -> int:
    """Write the page and the table of the studies that are named, or all."""
    names = parsed.names or list(STUDIES)
    check_names(names)
    output = writable_folder("--output", parsed.output)
    from experiments.report.command import report

    for path in report(output, names, console):
        console.print(place(path), soft_wrap=True)
    return 0


def _run_study(name: str, options: Options, console: Console) -> Outcome:
    check_keys(options.settings)
    from experiments.studies.measuring import run_study, study_folder
    from experiments.studies.study import find_study

    study = find_study(name)
    return run_study(study, options, console), study_folder(study, options)


def _run_preset(name: str, options: Options, console: Console) -> Outcome:
    if name not in preset_names():
        known = ", ".join([*preset_names(), *STUDIES])
        raise ConfigError(f"NAME = {name}: expected one of {known}")
    for key in ("quick", "control"):
        if getattr(options, key):
            raise ConfigError(f"--{key}: expected a study, and {name} is a preset")
    options.configure(preset(name), options.output, seed=1)
    from experiments.running.preset_runs import preset_folder, run_preset

    return run_preset(name, options, console), preset_folder(name, options)


def options_of(parsed: argparse.Namespace) -> Options:
    """Return the options of a parsed command line.

    Raises
    ------
    ConfigError
        If one of them is out of range or cannot be read.
    """
    for key in ("rounds", "nodes"):
        value = getattr(parsed, key, None)
        if value is not None and value < 1:
            raise ConfigError(f"--{key} {value}: expected at least 1")
    if (nodes := getattr(parsed, "nodes", None)) is not None:
        check_nodes("--nodes", nodes)
    return Options(
        engine=parsed.engine,
        device=parsed.device,
        seeds=parse_seeds(parsed.seeds) if parsed.seeds else None,
        rounds=getattr(parsed, "rounds", None),
        output=own_path("--output", parsed.output),
        settings=parse_settings(getattr(parsed, "settings", [])),
        nodes=getattr(parsed, "nodes", None),
        fresh=parsed.fresh,
        keep=parsed.keep,
        quick=parsed.quick,
        control=getattr(parsed, "control", False),
    )
