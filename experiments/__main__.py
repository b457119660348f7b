"""The command line: ``python -m experiments run NAME`` and ``python -m experiments list``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.claims import description, preset_names
from experiments.engines import RunFailedError
from experiments.options import Options, parse_seeds, parse_settings
from experiments.runner import run_preset, show
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
    run.add_argument("--seeds", default="1", metavar="1,2,3", help="one run each (default 1)")
    run.add_argument("--rounds", type=int, metavar="N", help="instead of the preset's number")
    run.add_argument("--nodes", type=int, metavar="N", help="number of nodes")
    run.add_argument("--output", default="~/pfl-flower", metavar="DIR", help="results' folder")
    run.add_argument("--fresh", action="store_true", help="run finished seeds again")
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
        if parsed.name not in preset_names():
            known = ", ".join(preset_names())
            raise ConfigError(f"NAME = {parsed.name}: expected one of {known}")
        summary = run_preset(parsed.name, options, console)
    except (ConfigError, DataError, NodesMissingError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except RunFailedError as error:
        print(error, file=sys.stderr)
        return FAILED
    show(summary, options.output / parsed.name, console)
    return PASSED if summary["passed"] else FAILED


def _options(parsed: argparse.Namespace) -> Options:
    for key in ("rounds", "nodes"):
        value = getattr(parsed, key)
        if value is not None and value < 1:
            raise ConfigError(f"--{key} {value}: expected at least 1")
    return Options(
        engine=parsed.engine,
        device=parsed.device,
        seeds=parse_seeds(parsed.seeds),
        rounds=parsed.rounds,
        output=Path(parsed.output).expanduser().absolute(),
        settings=parse_settings(parsed.settings),
        nodes=parsed.nodes,
        fresh=parsed.fresh,
    )


def _list(console: Console) -> None:
    table = Table(title="presets: python -m experiments run NAME")
    table.add_column("name", no_wrap=True)
    table.add_column("what it runs")
    for name in preset_names():
        table.add_row(name, description(name))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
