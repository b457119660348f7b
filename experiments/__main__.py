"""The command line: ``python -m experiments list``, ``run NAME``, ``reproduce``, ``report``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.benchmark import command as benchmark
from experiments.report.command import report
from experiments.running.engines import RunFailedError
from experiments.running.options import Options, parse_seeds, parse_settings
from experiments.running.preset_runs import run_preset, show
from experiments.studies.catalogue import STUDIES
from experiments.studies.reproduce import reproduce
from experiments.studies.study import find_study, run_study
from experiments.vgg import train_command
from pfl_flower.run.presets import description, preset_names
from pfl_flower.support.errors import ConfigError, DataError, NodesMissingError

PASSED, FAILED, BAD_INPUT = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list presets and experiments")
    run = commands.add_parser("run", help="run one of them")
    run.add_argument("name", metavar="NAME", help="a preset or an experiment, see list")
    run.add_argument("--rounds", type=int, metavar="N", help="instead of the preset's number")
    run.add_argument("--nodes", type=int, metavar="N", help="number of nodes")
    run.add_argument(
        "--control",
        action="store_true",
        help="a study with an idle attacker: passes if every claim of success fails",
    )
    run.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="settings"
    )
    reproduce_ = commands.add_parser("reproduce", help="run all studies, or those named")
    reproduce_.add_argument("names", nargs="*", metavar="NAME", help="studies (default: all)")
    for command in (run, reproduce_):
        _add_common(command)
    page = commands.add_parser("report", help="one HTML page and a table of all studies' results")
    page.add_argument("names", nargs="*", metavar="NAME", help="studies (default: all)")
    page.add_argument("--output", default="~/pfl-flower", metavar="DIR", help="results' folder")
    train_command.add_parser(commands)
    benchmark.add_parser(commands)
    return top


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--engine", choices=("inprocess", "simulation"), default="inprocess")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--seeds", metavar="1,2,3", help="one run each (default: its own)")
    command.add_argument("--output", default="~/pfl-flower", metavar="DIR", help="results' folder")
    command.add_argument("--quick", action="store_true", help="a study's smaller sizes, one seed")
    command.add_argument("--fresh", action="store_true", help="run finished seeds again")
    command.add_argument(
        "--keep", action="store_true", help="keep finished seeds even if the code has changed"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 passed, 1 a check failed, 2 bad input."""
    parsed = parser().parse_args(arguments)
    console = Console()
    try:
        return COMMANDS[parsed.command](parsed, console)
    except (ConfigError, DataError, NodesMissingError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except RunFailedError as error:
        print(error, file=sys.stderr)
        return FAILED


def _run_one(parsed: argparse.Namespace, console: Console) -> int:
    options = _options(parsed)
    summary = _run(parsed.name, options, console)
    show(summary, options.output / parsed.name, console)
    return PASSED if summary["passed"] else FAILED


def _reproduce(parsed: argparse.Namespace, console: Console) -> int:
    names = parsed.names or list(STUDIES)
    outcomes = reproduce(names, _options(parsed), console)
    return PASSED if all(outcome.verdict == "passed" for outcome in outcomes) else FAILED


def _report(parsed: argparse.Namespace, console: Console) -> int:
    output = Path(parsed.output).expanduser().absolute()
    for path in report(output, parsed.names or list(STUDIES), console):
        console.print(f"  {path}", soft_wrap=True)
    return PASSED


def _run(name: str, options: Options, console: Console) -> dict[str, Any]:
    if name in STUDIES:
        return run_study(find_study(STUDIES[name]), options, console)
    if name not in preset_names():
        known = ", ".join([*preset_names(), *STUDIES])
        raise ConfigError(f"NAME = {name}: expected one of {known}")
    for key in ("quick", "control"):
        if getattr(options, key):
            raise ConfigError(f"--{key}: expected a study, and {name} is a preset")
    return run_preset(name, options, console)


def _options(parsed: argparse.Namespace) -> Options:
    for key in ("rounds", "nodes"):
        value = getattr(parsed, key, None)
        if value is not None and value < 1:
            raise ConfigError(f"--{key} {value}: expected at least 1")
    return Options(
        engine=parsed.engine,
        device=parsed.device,
        seeds=parse_seeds(parsed.seeds) if parsed.seeds else None,
        rounds=getattr(parsed, "rounds", None),
        output=Path(parsed.output).expanduser().absolute(),
        settings=parse_settings(getattr(parsed, "settings", [])),
        nodes=getattr(parsed, "nodes", None),
        fresh=parsed.fresh,
        keep=parsed.keep,
        quick=parsed.quick,
        control=getattr(parsed, "control", False),
    )


def _list(parsed: argparse.Namespace, console: Console) -> int:
    presets = {name: description(name) for name in preset_names()}
    studies = {name: find_study(place).title for name, place in STUDIES.items()}
    for title, entries in (("presets", presets), ("studies", studies)):
        table = Table(title=f"{title}: python -m experiments run NAME")
        table.add_column("name", no_wrap=True)
        table.add_column("what it shows")
        for name, text in entries.items():
            table.add_row(name, text)
        console.print(table)
    return PASSED


COMMANDS: Mapping[str, Callable[[argparse.Namespace, Console], int]] = {
    "list": _list,
    "run": _run_one,
    "reproduce": _reproduce,
    "report": _report,
    "train-vgg": train_command.run,
    "benchmark": benchmark.run,
}


if __name__ == "__main__":
    sys.exit(main())
