"""What can be typed after ``defences``."""

from __future__ import annotations

import argparse
from typing import Any


def add_defences(commands: Any) -> argparse.ArgumentParser:
    """Add ``defences`` to the command line's subparsers, and return its parser."""
    command: argparse.ArgumentParser = commands.add_parser(
        "defences", help="attacks against rules; with --rule one of your own among them"
    )
    command.add_argument(
        "--rule", metavar="MODULE:NAME", help="a rule of your own: put into the stored table"
    )
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side")
    command.add_argument(
        "--scenes", default="", metavar="NAME,...", help="crossed, or such as l2/0.3 (default: all)"
    )
    command.add_argument(
        "--so-far", action="store_true", help="run nothing: say what whole scenes came to"
    )
    return command
