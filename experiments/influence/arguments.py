"""What can be typed after ``influence``."""

from __future__ import annotations

import argparse
from typing import Any


def add_influence(commands: Any) -> argparse.ArgumentParser:
    """Add ``influence`` to the command line's subparsers, and return its parser."""
    command: argparse.ArgumentParser = commands.add_parser(
        "influence", help="how far k users move rho, in a round and in the end: bound and found"
    )
    command.add_argument(
        "--rule", action="append", default=[], metavar="RULE", help="of the table, or my:rule"
    )
    command.add_argument(
        "--regularizer", action="append", default=[], metavar="R", help="of the table, or my:Class"
    )
    command.add_argument("--strategic", type=int, default=2, metavar="K", help="of 14 users")
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side")
    return command
