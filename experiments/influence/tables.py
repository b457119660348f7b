"""The table, as it is printed and as Markdown: the largest over the seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.table import Table as Printed

from experiments.influence.measuring import USERS, Row
from pfl_flower.run import reference
from pfl_flower.support.console import plain

HEAD = ("rule", "regulariser", "round: found", "bound", "at rest: found", "bound")


def lines(seeds: Sequence[Sequence[Row]]) -> Iterator[tuple[str, ...]]:
    """Yield rows under ``HEAD``: what was found and its bound, of the seed in which most was."""
    for ones in zip(*seeds, strict=True):
        once = max(ones, key=lambda row: row.round_found)
        rest = max(ones, key=lambda row: row.rest_found)
        free = once.free and math.isinf(once.round_bound)
        yield (
            once.rule,
            once.regularizer,
            "free" if free else f"{once.round_found:.3g}",
            _bound(once.round_bound),
            "free" if rest.free else f"{rest.rest_found:.3g}",
            _bound(rest.rest_bound),
        )


def _bound(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"


def title(seeds: Sequence[Sequence[Row]]) -> str:
    """Return what the table is of."""
    of = f", the largest of {len(seeds)} seeds" if len(seeds) > 1 else ""
    return f"how far {seeds[0][0].strategic} of {USERS} users move rho, lam = 1{of}"


FREE = "free: rho went where it was pushed, 1000 away"


def printed(seeds: Sequence[Sequence[Row]]) -> Printed:
    """Return the table for the terminal."""
    table = Printed(title=title(seeds), caption=FREE)
    for name in HEAD:
        table.add_column(name, justify="left" if name in HEAD[:2] else "right")
    for row in lines(seeds):
        table.add_row(*map(plain, row))
    return table


def markdown(seeds: Sequence[Sequence[Row]]) -> Iterator[str]:
    """Yield the lines of the Markdown table."""
    yield f"# {title(seeds).capitalize()}"
    yield ""
    yield f"({FREE})"
    yield ""
    yield reference.markdown(HEAD, list(lines(seeds)))
    yield ""
