"""The command line: ``python -m experiments list``, ``run NAME``, ``reproduce``, ``report``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from experiments.running.parser import parser
from pfl_flower.support.errors import REFUSALS
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.world import failure

NO_VERDICT, INTERRUPTED = 2, 130
KEPT = "what was finished is kept, and the same command goes on with the rest"

COMMANDS: Mapping[str, str] = {
    "list": "experiments.running.listing:show_names",
    "run": "experiments.running.run_command:run_one",
    "data": "experiments.running.data_command:show_data",
    "reproduce": "experiments.running.run_command:run_studies",
    "defences": "experiments.defences.command:run",
    "sweep": "experiments.running.sweep_command:sweep",
    "compare": "experiments.running.compare_command:compare",
    "report": "experiments.running.run_command:report_studies",
    "train-vgg": "experiments.vgg.train_command:run",
    "benchmark": "experiments.benchmark.command:run",
    "influence": "experiments.influence.command:run",
}
"""Where each command is: only the one that was asked for is imported."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: passed; 1: a check failed; 2: bad input, or disk, permissions, memory or Flower stopped it;
    130: interrupted.
    """
    parsed = parser().parse_args(arguments)
    module, _, name = COMMANDS[parsed.command].partition(":")
    try:
        command: Callable[..., int] = getattr(importlib.import_module(module), name)
        return command(parsed, Console())
    except REFUSALS as error:
        print(error, file=sys.stderr)
        return NO_VERDICT
    except KeyboardInterrupt:
        print(f"interrupted: {KEPT}", file=sys.stderr)
        return INTERRUPTED
    except (OSError, MemoryError, RuntimeError) as error:
        said = failure(error)
        if said is None:
            raise
        print(f"{one_line(said)}; {KEPT}", file=sys.stderr)
        return NO_VERDICT


def console() -> int:
    """Run the command line as ``pfl-flower``: plug-ins in the current folder are found too.

    ``python -m`` puts that folder first. Here it comes last, so that no folder of the user's is
    taken for one of ours.
    """
    sys.path.append(os.getcwd())
    return main()


if __name__ == "__main__":
    sys.exit(main())
