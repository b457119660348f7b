"""What can be typed after ``benchmark``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROOM = "experiments.benchmark"

COMPARISONS: Mapping[str, str] = {
    "gpu": f"{ROOM}.figure_1_round:on_the_card",
    "figure-1": f"{ROOM}.figure_1_round:against_loops",
    "one-thread": f"{ROOM}.figure_1_round:on_one_thread",
    "notebook": f"{ROOM}.figure_1_round:on_the_authors_protocol",
    "zeros": f"{ROOM}.zeros:against_all_numbers",
    "simulation": f"{ROOM}.overhead:against_simulation",
    "messages": f"{ROOM}.overhead:large_messages",
    "aggregators": f"{ROOM}.aggregators:against_peers",
    "message": f"{ROOM}.overhead:a_message",
    "checked": f"{ROOM}.checked_round:against_plain",
    "growth": f"{ROOM}.growth:against_linear",
    "target": f"{ROOM}.time_to_target:against_exact_solves",
}
"""What is compared, and the function that measures it, in the order in which that is done: the
card's first, where there is one, for cards are lent for minutes."""


def add_benchmark(commands: Any) -> None:
    """Add ``benchmark`` to the command line's subparsers."""
    command = commands.add_parser("benchmark", help="what a round costs, against its rivals")
    command.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMPARISONS)}")
    command.add_argument(
        "--row", action="append", default=[], metavar="NAME", help="the same, one at a time"
    )
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--output", default="~/pfl-flower", metavar="DIR", help="results' folder")
    command.add_argument("--repeats", type=int, default=3, metavar="N")
    command.add_argument("--quick", action="store_true", help="digits, fewer rounds, one repeat")
