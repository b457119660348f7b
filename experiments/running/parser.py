"""What can be typed. Nothing is imported here that takes long: ``--help`` answers at once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from experiments.benchmark.arguments import add_benchmark
from experiments.defences.arguments import add_defences
from experiments.influence.arguments import add_influence
from experiments.vgg.arguments import add_train_vgg

RESULTS = "~/pfl-flower"
SCRIPT = "pfl-flower"


def called() -> str:
    """Return what was typed to get here: the console script, or Python with this package."""
    return SCRIPT if Path(sys.argv[0]).stem == SCRIPT else "python -m experiments"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        prog=called(),
        description="Personalised federated learning under strategic users: "
        "runs, theorems, the paper's figures.",
    )
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list presets and studies")
    _add_run(commands)
    _add_data(commands)
    _add_reproduce(commands)
    _add_sweep(commands)
    _add_compare(commands)
    _add_report(commands)
    _add_common(add_defences(commands))
    add_train_vgg(commands)
    add_benchmark(commands)
    _add_common(add_influence(commands))
    return top


def _add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="run one of them")
    run.add_argument("name", metavar="NAME", help="a preset or a study, see list")
    run.add_argument("--rounds", type=int, metavar="N", help="instead of the preset's number")
    run.add_argument("--nodes", type=int, metavar="N", help="number of nodes")
    run.add_argument(
        "--control",
        action="store_true",
        help="a study with an idle attacker: passes if every claim of success fails",
    )
    _add_settings(run)
    _add_common(run)


def _add_data(commands: Any) -> None:
    data = commands.add_parser("data", help="show which user of a preset holds what; nothing runs")
    data.add_argument("name", metavar="PRESET", help="see list")
    data.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the run")
    data.add_argument("--output", default=RESULTS, metavar="DIR", help="results' folder")
    _add_settings(data)


def _add_reproduce(commands: Any) -> None:
    reproduce = commands.add_parser("reproduce", help="run all studies, or those named")
    reproduce.add_argument("names", nargs="*", metavar="NAME", help="studies (default: all)")
    reproduce.add_argument(
        "--judge",
        action="store_true",
        help="measure nothing: judge the numbers in DIR by the claims as they stand",
    )
    _add_common(reproduce)


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser("sweep", help="run a preset for every combination of some values")
    sweep.add_argument("name", metavar="PRESET", help="see list")
    sweep.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="KEY=VALUE,...",
        help="a key and its values; may be given for several keys; values with commas in quotes",
    )
    sweep.add_argument("--rounds", type=int, metavar="N", help="instead of the preset's number")
    sweep.add_argument("--nodes", type=int, default=2, metavar="N", help="number of nodes")
    sweep.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side")
    sweep.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each run")
    sweep.add_argument("--seeds", metavar="1,2,7-9", default="1", help="of each combination")
    sweep.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    sweep.add_argument("--output", default=RESULTS, metavar="DIR", help="results' folder")
    sweep.add_argument("--fresh", action="store_true", help="run finished cells again")
    _add_settings(sweep)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser("compare", help="put runs and sweeps side by side")
    compare.add_argument("folders", nargs="+", metavar="DIR", help="folders of runs or sweeps")
    compare.add_argument(
        "--metrics", nargs="+", default=[], metavar="NAME", help="columns of rounds.csv to draw"
    )
    compare.add_argument("--output", metavar="DIR", help="folder of the table and the picture")


def _add_settings(command: Any) -> None:
    command.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="settings"
    )


def _add_report(commands: Any) -> None:
    page = commands.add_parser("report", help="one HTML page and a table of all studies' results")
    page.add_argument("names", nargs="*", metavar="NAME", help="studies (default: all)")
    page.add_argument("--output", default=RESULTS, metavar="DIR", help="results' folder")


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--engine", choices=("inprocess", "simulation"), default="inprocess")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--seeds", metavar="1,2,7-9", help="one run each (default: its own)")
    command.add_argument("--output", default=RESULTS, metavar="DIR", help="results' folder")
    command.add_argument("--quick", action="store_true", help="a study's smaller sizes, one seed")
    command.add_argument("--fresh", action="store_true", help="run finished seeds again")
    command.add_argument(
        "--keep", action="store_true", help="keep finished seeds even if the code has changed"
    )
