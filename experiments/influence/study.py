"""What k users can do to rho, for every rule and regulariser: the bound beside what was found.

Ten and more honest users solve exactly, k others know the rule and all reports and want rho a
thousand away (``pushing``). Displacements are of one round, between pushes to opposite sides, and
of where rho rests. For a rule that has a bound nothing may be found beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.influence.drawing import draw as picture
from experiments.influence.measuring import FULL, QUICK, SLACK, USERS, Row, Size, pushed, quiet
from experiments.influence.pushing import FAR
from experiments.influence.rows import Cell, row_of, rows_of
from experiments.influence.tables import markdown, printed
from experiments.running.options import Options
from experiments.studies.standing import Stated
from experiments.studies.study import Result, Setting, Study
from experiments.studies.wording import Measured
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.objective.table import REGULARIZERS
from pfl_flower.run.checks import Claim, at_least, at_most, exactly
from pfl_flower.run.config import parse_config
from pfl_flower.run.keys import kebab
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.files import replace_file

QUICKLY = ("squared-l2", "l2")
"""Regularisers of the quick form: one of which GRAD is everything, and a ball."""
STRATEGIC = 2
BEYOND = "rows in which more was found than the bound"
HOLDS = Claim(BEYOND, exactly(0), BEYOND)
REACHED = {"round": "part of the bound reached in one round", "rest": "part reached at rest"}


def size_of(options: Options) -> Size:
    """Return how much is tried.

    Raises
    ------
    ConfigError
        If the strategic users are not the fewer.
    """
    k = int(options.study.get("strategic", STRATEGIC))
    if not 1 <= k < USERS / 2:
        raise ConfigError(f"--strategic {k}: expected 1 to {(USERS - 1) // 2}, of {USERS} users")
    directions, rounds, trials = QUICK if options.quick else FULL
    return Size(strategic=k, directions=directions, rounds=rounds, trials=trials)


def cells_of(options: Options) -> list[Cell]:
    """Return the rules and regularisers that are asked for, all in the full form."""
    rules, couplings = (
        list(dict.fromkeys(filter(None, options.study.get(name, "").split(","))))
        for name in ("rule", "regularizer")
    )
    usual = QUICKLY if options.quick else REGULARIZERS
    return [(rule, one) for rule in rules or AGGREGATIONS for one in couplings or usual]


def check(options: Options) -> None:
    """Refuse what cannot be run before anything is.

    Raises
    ------
    ConfigError
        If a rule or a regulariser does not admit such a run, in its own words.
    """
    size = size_of(options)
    for cell in cells_of(options):
        attacked = pushed(*cell, size, rounds=size.rounds, direction=1, sign=1)
        for keys in (quiet(*cell, size), attacked):
            parse_config({kebab(key): value for key, value in keys.items()})


def measure(setting: Setting) -> dict[str, Any]:
    """Measure the rows that are not there yet, and return all."""
    options = setting.options
    if options.engine != "inprocess":
        raise ConfigError(f"--engine {options.engine}: expected inprocess, for this study")
    check(options)

    def ended(cell: Cell, left: int) -> None:
        setting.say(f"{left} left: {', '.join(cell)}")

    rows = rows_of(
        cells_of(options), size_of(options), setting.seed, setting.folder, options, ended
    )
    return {"rows": [row.kept() for row in rows], "metrics": metrics(rows)}


def metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Return displacements by rule and regulariser, what part of a bound they are, and counts."""
    found: dict[str, float] = {}
    for row in rows:
        where = f"{row.regularizer}, {row.rule}"
        found |= {f"{where}: one round": row.round_found, f"{where}: at rest": row.rest_found}
        found |= {f"{where}: {REACHED[what]}": part for what, part in row.reached().items()}
    found["rows"] = float(len(rows))
    found[BEYOND] = float(sum(not row.holds for row in rows))
    return found


def rows_in(result: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a seed's result as it was kept."""
    return [row_of(values) for values in result["rows"]]


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw what was found and the bounds, the largest over the seeds, and write the table."""
    seeds = [rows_in(result) for result in results]
    picture(seeds, folder)
    Console().print(printed(seeds))
    replace_file(folder / "influence.md", "\n".join(markdown(seeds)))


def words(m: Measured) -> str:
    """Return how near the bounds what was found comes."""
    once, rest = (f"*: {name}" for name in REACHED.values())
    return (
        f"In {m.total('rows'):g} rows (rule, regulariser, seed) nothing is found beyond a bound "
        f"in all but {m.total(BEYOND):g}. Where there is one, {m.low(once):z.0%} to "
        f"{m.high(once):z.0%} of it is found in one round, and at rest {m.low(rest):z.0%} to "
        f"{m.high(rest):z.0%}."
    )


PAPER = (
    Stated(
        what="under squared l2 and the sum a strategic user takes rho to any target",
        where="Theorem 4",
        claim=Claim("squared-l2, sum: at rest", at_least(FAR / 2)),
        against=at_most(1.0),
        why="most of the way to a target a thousand away; the opposite: a thousandth of it",
    ),
    Stated(
        what="under l2 it does not",
        where="Section 5.1, Figure 1",
        claim=Claim("l2, sum: at rest", at_most(1.0)),
        against=at_least(FAR / 2),
        why="a thousandth of the way to the target; the opposite: most of it",
    ),
)
STUDY = Study(
    name="influence",
    claim=(
        "Ours: where a rule's direction is a sum of what single users add, k users move rho no "
        "farther than a bound, in one round and at rest, whatever they send."
    ),
    words=words,
    measure=measure,
    draw=draw,
    seeds=(1, 2, 3),
    always=(
        HOLDS,
        Claim(
            f"l2, sum: {REACHED['round']}",
            at_least(1 - SLACK),
            "l2, sum: the bound of one round is reached",
        ),
    ),
    paper=PAPER,
    setting=(
        f"Linear regression in 5 features, {USERS} users of whom {STRATEGIC} push, 40 points each; "
        "lam = 1, nu = 0.1, exact solves; omniscient attackers who know the rule."
    ),
)
