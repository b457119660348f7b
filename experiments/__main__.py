"""The command line: ``python -m experiments run NAME`` and ``python -m experiments list``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.claims import description, preset_names
from experiments.engines import RunFailedError
from experiments.options import Options, parse_seeds, parse_settings
from experiments.runner import run_preset, show
from experiments.studies import STUDIES
from experiments.study import find_study, run_study
from pfl_flower.config import ConfigError
from pfl_flower.datasets import DataError
from strategies.roster import NodesMissingError

PASSED, FAILED, BAD_INPUT = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list presets and experiments")
    run = commands.add_parser("run", help="run one of them")
    run.add_argument("name", metavar="NAME", help="a preset or an experiment, see list")
    run.add_argument("--engine", choices=("inprocess", "simulation"), default="inprocess")
    run.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    run.add_argument("--seeds", metavar="1,2,3", help="one run each (default: its own)")
    run.add_argument("--rounds", type=int, metavar="N", help="instead of the preset's number")
    run.add_argument("--nodes", type=int, metavar="N", help="number of nodes")
    run.add_argument("--output", default="~/pfl-flower", metavar="DIR", help="results' folder")
    run.add_argument("--quick", action="store_true", help="a study's smaller sizes")
    run.add_argument(
        "--control",
        action="store_true",
        help="a study with an idle attacker: passes if every claim of success fails",
    )
    run.add_argument("--fresh", action="store_true", help="run finished seeds again")
    run.add_argument(
        "--keep", action="store_true", help="keep finished seeds even if the code has changed"
    )
    run.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="settings"
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 passed, 1 a check failed, 2 bad input."""
    parsed = parser().parse_args(arguments)
    console = Console()
    if parsed.command == "list":
        _list(console)
        return PASSED
    try:
        options = _options(parsed)
        summary = _run(parsed.name, options, console)
    except (ConfigError, DataError, NodesMissingError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except RunFailedError as error:
        print(error, file=sys.stderr)
        return FAILED
    show(summary, options.output / parsed.name, console)
    return PASSED if summary["passed"] else FAILED


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
        value = getattr(parsed, key)
        if value is not None and value < 1:
            raise ConfigError(f"--{key} {value}: expected at least 1")
    return Options(
        engine=parsed.engine,
        device=parsed.device,
        seeds=parse_seeds(parsed.seeds) if parsed.seeds else None,
        rounds=parsed.rounds,
        output=Path(parsed.output).expanduser().absolute(),
        settings=parse_settings(parsed.settings),
        nodes=parsed.nodes,
        fresh=parsed.fresh,
        keep=parsed.keep,
        quick=parsed.quick,
        control=parsed.control,
    )


def _list(console: Console) -> None:
    presets = {name: description(name) for name in preset_names()}
    studies = {name: find_study(place).title for name, place in STUDIES.items()}
    for title, entries in (("presets", presets), ("studies", studies)):
        table = Table(title=f"{title}: python -m experiments run NAME")
        table.add_column("name", no_wrap=True)
        table.add_column("what it shows")
        for name, text in entries.items():
            table.add_row(name, text)
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
