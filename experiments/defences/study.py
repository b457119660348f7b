"""Attack x rule, in several scenes: what a rule costs, and the worst that is done to it.

Ten honest users and two strategic ones on the digits, through the clients and the strategy of a
real run. Every attack meets every rule under squared l2 and l2, among users who are alike and who
differ; the regulariser, how much users differ and how they personalise are changed one at a time
around that (``plan``). A rule is judged by its worst case over attackers, those who know it and the
honest reports among them (``judgement``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from experiments.defences.cells import Cells
from experiments.defences.coverage import SEEDS
from experiments.defences.estimate import Forecast, clock
from experiments.defences.judgement import BROKE, UNSOUND, measured, metrics
from experiments.defences.plan import (
    BOUNDED,
    EVEN,
    FIRST,
    OPEN,
    REFERENCE,
    SCENES,
    Cell,
    Plan,
    Rule,
    rule_of,
)
from experiments.defences.presentation import draw
from experiments.studies.standing import FIGURE, GUESSING, Stated
from experiments.studies.study import Setting, Study
from experiments.studies.wording import Measured
from pfl_flower.aggregation.rounds import is_told_f
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.run.checks import Check, Claim, Metrics, at_least, at_most, exactly
from pfl_flower.support.errors import ConfigError


def measure(setting: Setting) -> dict[str, Any]:
    """Run the cells that are not there yet, and return what all came to."""
    return measure_plan(setting, None)


def own_rule(place: str) -> Rule:
    """Return a rule of one's own, ``package.module:name``; f is told if it has a ``tolerance``.

    Raises
    ------
    ConfigError
        If it cannot be imported.
    """
    rule = rule_of(place, place)
    if is_told_f(AGGREGATIONS.load(place)):
        return rule
    keys = {key: value for key, value in rule.keys.items() if key != "aggregation-tolerance"}
    return Rule(rule.name, keys)


def measure_plan(setting: Setting, own: Rule | None) -> dict[str, Any]:
    """Run the plan, with one's own rule in place of the table's if there is one.

    What is printed first is how long it takes: one run of each kind is timed, and counts.
    """
    options = setting.options
    if options.engine != "inprocess":
        raise ConfigError(f"--engine {options.engine}: expected inprocess, for this study")
    plan = Plan.of(quick=setting.quick, scenes=options.study.get("scenes", ""), own=own)
    cells = Cells(setting, plan)
    if "so-far" in options.study:
        return _so_far(cells)
    forecast = Forecast(cells)
    done = len(plan.cells) - len(cells.waiting(plan.cells))

    def ended(cell: Cell) -> None:
        left = cells.waiting(plan.cells)
        time = clock(forecast.total(left) / options.jobs)
        setting.say(f"{len(plan.cells) - len(left)}/{len(plan.cells)}, {time} left: {cell}")

    def timed(cell: Cell) -> None:
        setting.say(f"timing one run of each kind: {cell}")

    cells.run(forecast.kinds(), options.jobs, timed)
    setting.tell(_foreseen(setting, cells, forecast, done))
    cells.run(plan.cells, options.jobs, ended)
    return _came_to(cells)


def _came_to(cells: Cells) -> dict[str, Any]:
    found = measured(cells)
    took = sum(row.get("seconds", 0.0) for row in map(cells.row, cells.plan.cells) if row)
    return {"cells": found, "metrics": {**metrics(found), "seconds of the runs": took}}


def _so_far(cells: Cells) -> dict[str, Any]:
    """Return what the scenes came to of which every run is there."""
    seed = cells.setting.seed
    whole = [scene for scene in cells.plan.scenes if cells.has(scene)]
    if FIRST not in whole:
        raise ConfigError(f"--so-far: expected all runs of {FIRST} for seed {seed}, or no --so-far")
    cells.setting.tell(f"defences, seed {seed}: as measured so far, {', '.join(whole)}")
    there = tuple(cell for cell in cells.plan.cells if cell.scene in whole)
    return _came_to(replace(cells, plan=replace(cells.plan, cells=there)))


def _foreseen(setting: Setting, cells: Cells, forecast: Forecast, done: int) -> str:
    plan, jobs = cells.plan.cells, setting.options.jobs
    left = cells.waiting(plan)
    kept = f", {done:,} of them kept from before" if done else ""
    return (
        f"defences, seed {setting.seed}: {len(plan):,} runs{kept}; by one timed run of each of "
        f"{len(forecast.kinds())} kinds ({cells.slowness:.2f} s by the clock for one of the "
        f"processor now) the rest takes about {clock(forecast.total(left) / jobs)} "
        f"with --jobs {jobs}, and a whole seed {clock(forecast.total(plan) / jobs)}"
    )


LEARNT = 0.9
"""Accuracy of the sum without an attack that is worth being lost: nine digits in ten."""
MOVED = 2 / 12
"""Share of the way that counts as having stopped CGA: what two users of twelve get in a mean who
honestly prefer the target."""
OPENED = f"{OPEN}/{EVEN}, {REFERENCE}"
SUCCESS = (
    Claim(f"{OPENED}: CGA to target", at_most(FIGURE), f"{OPENED}: CGA reaches its target"),
    Claim(
        f"{OPENED}: worst harm",
        at_least(LEARNT - GUESSING),
        f"{OPENED}: some attack ruins the model",
    ),
)
ALWAYS = (
    Claim(
        f"{OPENED}: accuracy without attack",
        at_least(LEARNT),
        f"{OPENED}: learns where nobody attacks",
    ),
    Claim(BROKE, exactly(0), BROKE),
    Claim(UNSOUND, exactly(0), UNSOUND),
)


def judge(finals: Sequence[Metrics]) -> list[Check]:
    """Return that who is told more gets as far: else the search of those who know is no good."""
    least = [
        min(
            value - final[name.replace("of the told", "of the untold")]
            for name, value in final.items()
            if name.endswith(": share of the told")
        )
        for final in finals
    ]
    name = "share of the told beyond that of the untold, at the least"
    return [at_least(-FIGURE).check(name, least)]


def words(m: Measured) -> str:
    """Return what rules keep from attackers who are not told, and from all of them."""
    but, at = f"*, {REFERENCE}: *", f"{OPEN}/*"
    bounded = [name for name in m.values if name.startswith(f"{BOUNDED}/")]
    under = f", up to {m.high(f'{BOUNDED}/*: worst harm'):z.1%} under l2" if bounded else ""
    return (
        f"Under squared l2 and the sum CGA moves rho {m.high(f'{OPENED}: CGA share'):z.0%} of the "
        f"way to its target. Under squared l2 and any other rule attackers who are told nothing "
        f"get {m.low(f'{at}: share of the untold', but=but):z.1%} to "
        f"{m.high(f'{at}: share of the untold', but=but):z.1%} of the way, those who are told "
        f"{m.low(f'{at}: share of the told', but=but):z.1%} to "
        f"{m.high(f'{at}: share of the told', but=but):z.1%}. The worst attack takes up to "
        f"{m.high(f'{at}: worst harm', but=but):z.1%} of accuracy there{under}; where nobody "
        f"attacks a rule costs up to {m.high('*: cost'):z.1%}. {_lacking(m)}".rstrip()
    )


def _lacking(m: Measured) -> str:
    """Return how much of the study is not measured yet; ``defences.md`` says what."""
    calm = f"{REFERENCE}: accuracy without attack"
    there = sum(min(SEEDS, len(m.values.get(f"{name}, {calm}", ()))) for name in SCENES)
    every = SEEDS * len(SCENES)
    return f"Measured so far: {there} of {every} scenes, counting seeds." if there < every else ""


PAPER = (
    Stated(
        what="CGA hacks squared l2 (here the digits, with two attackers)",
        where="Section 5.1, Figure 1",
        claim=Claim(f"{OPENED}: CGA to target", at_most(FIGURE)),
        against=at_least(0.5),
        why="what a figure does not tell from 0 of the way; the opposite: half of it is left",
    ),
    Stated(
        what="CGA fails to hack l2 (here the digits, with two attackers)",
        where="Section 5.1, Figure 1",
        claim=Claim(f"{BOUNDED}/{EVEN}, {REFERENCE}: CGA share", at_most(MOVED)),
        against=at_least(0.5),
        why="what two of twelve get who honestly prefer the target; the opposite: half the way",
    ),
)
STUDY = Study(
    name="defences",
    claim=(
        "Ours, not the paper's: what rules keep from attackers who do not know them they do not "
        "keep from those who do, and among users who differ the rules cost accuracy themselves."
    ),
    words=words,
    measure=measure,
    judge=judge,
    draw=draw,
    seeds=tuple(range(1, SEEDS + 1)),
    success=SUCCESS,
    always=ALWAYS,
    paper=PAPER,
    has_runs=True,
    brought=frozenset({"scenes", "so-far"}),
    setting=(
        "Digits in 16 principal components among ten honest users and two strategic ones, evenly "
        "or by Dirichlet(alpha), a fifth of each user's points kept for its own test; lam = 1, nu "
        "= 0.01; 30 rounds of one local Adam step; f = 2. Attackers are omniscient where they can."
    ),
)
