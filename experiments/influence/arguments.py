"""What can be typed after ``influence``."""

from __future__ import annotations

from typing import Any


def add_influence(commands: Any) -> None:
    """Add ``influence`` to the command line's subparsers."""
    command = commands.add_parser(
        "influence", help="how far k users move rho, in a round and in the end: bound and found"
    )
    command.add_argument(
        "--rule", action="append", default=[], metavar="RULE", help="of the table, or my:rule"
    )
    command.add_argument(
        "--regularizer", action="append", default=[], metavar="R", help="of the table, or my:Class"
    )
    command.add_argument("--strategic", type=int, default=2, metavar="K", help="of 14 users")
    command.add_argument("--output", default="~/pfl-flower", metavar="DIR", help="results' folder")
    command.add_argument("--quick", action="store_true", help="two regularisers, one direction")
    command.add_argument("--fresh", action="store_true", help="measure finished rows again")
    command.add_argument(
        "--keep", action="store_true", help="keep finished rows even if the code has changed"
    )
