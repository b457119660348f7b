"""The end of a run: its equilibrium where that is asked for, what is kept, and what is said."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pfl_flower.data.users import Partitioned
from pfl_flower.run.at_equilibrium import measure_equilibrium
from pfl_flower.run.left_out import left_out_of_rounds, left_out_of_users
from pfl_flower.run.metrics import NODES
from pfl_flower.run.outcome import Course, Outcome, title
from pfl_flower.run.preset_claims import claimed
from pfl_flower.run.problem import Problem
from pfl_flower.run.rounds import ROUNDS_FILE
from pfl_flower.run.verdict import in_words, verdict
from pfl_flower.support.console import Say, plain

MEANINGS = {
    "accuracy_true": "accuracy on true labels",
    "accuracy_target": "accuracy on the attacker's labels",
    "local_accuracy": "accuracy of the honest local models",
    "active_accuracy": "of those with more points than the average",
    "idle_accuracy": "of those with fewer",
    "own_theta_mean": "on users' own test sets: theta_n, mean over users",
    "own_theta_worst": "theta_n, the worst user",
    "own_theta_tail": "theta_n, a tenth of the users is worse",
    "own_rho_mean": "rho, mean over users",
    "own_alone_mean": "a model learned alone, mean over users",
    "own_gain_over_rho": "what theta_n gains over rho",
    "own_gain_over_alone": "what theta_n gains over a model learned alone",
    "own_better_than_alone": "share of users for whom taking part pays",
    "triggered_rho": "triggered points that rho takes for the label, mean over users",
    "triggered_theta_mean": "that theta_n takes for it, mean over users",
    "triggered_theta_worst": "theta_n, the user most led",
    "distance_to_target": "||rho - target||",
    "distance_to_rival": "distance to the nearest other target",
    "distance_to_start": "||rho - rho_0||",
    "norm_rho": "||rho||",
    "honest_gradient_norm": "||sum of honest gradients||",
    "strategic_gradient_norm": "||sum of strategic gradients||",
    "rejections_total": "rejected reports, all rounds",
    "worst_residual_ever": "worst solver residual, all rounds",
    "unconverged_total": "local solves that missed their tolerance",
    "poisoned_points": "distinct poisoned queries",
    "poisoned_labels": "poisoned labels, total weight",
    "poisoned_residual": "residual of the poisoned data",
    "equilibrium_accuracy_true": "at equilibrium: accuracy on true labels",
    "equilibrium_accuracy_target": "at equilibrium: on the attacker's labels",
    "equilibrium_distance_to_target": "at equilibrium: ||rho* - target||",
    "equilibrium_gap": "||rho* - rho||",
}
"""The metrics that are shown, in this order."""


def conclude(
    problem: Problem, course: Course, *, began: float, folder: Path | None, say: Say
) -> Outcome:
    """Return the outcome of a run's rounds, once it is kept and told.

    Parameters
    ----------
    problem, course
        What was run, and what its rounds came to.
    began : float
        When, by ``time.perf_counter``.
    folder : Path or None
        Where results are written; None for nowhere.
    say : callable
        Who is told, line by line.
    """
    if folder is not None:
        # Before the equilibrium, which may take long, or be stopped.
        course.write(folder)
    at_rest = {}
    if problem.config.equilibrium:
        say("looking for the equilibrium: where the run leads")
        at_rest = measure_equilibrium(problem, course)
    outcome = Outcome(
        config=problem.config,
        course=course,
        at_rest=at_rest,
        device=problem.device,
        seconds=time.perf_counter() - began,
        radius=problem.plausible.radius,
        left_out=[
            *problem.source.left_out,
            *left_out_of_rounds(course.text),
            *course.attendance.left_out(problem.config),
            *left_out_of_users(course.users),
        ],
    )
    written: tuple[Path, ...] = ()
    if folder is not None:
        written = folder / ROUNDS_FILE, *outcome.write(folder), *_picture(problem, folder)
    say(f"\n{outcome.config.name}: {title(outcome.config)}")
    say(table(outcome))
    for path in written:
        say(f"  {path}")
    return outcome


def _picture(problem: Problem, folder: Path) -> tuple[Path, ...]:
    """Write the picture of who holds what, where anybody holds something of its own."""
    if not isinstance(problem.source, Partitioned):
        return ()
    from pfl_flower.run.holdings import Holdings
    from pfl_flower.run.user_figures import holdings_figure, holdings_title

    return holdings_figure(Holdings.of(problem), holdings_title(problem.config), folder)


def table(outcome: Outcome) -> str:
    """Return a table of what the run ended with, to be printed."""
    rows = Table()
    rows.add_column("after the last round")
    rows.add_column("value", justify="right")
    for key, meaning in MEANINGS.items():
        if key in outcome.metrics:
            word = NODES if key in outcome.nodes_word else ""
            rows.add_row(meaning + word, f"{outcome.metrics[key]:.4g}")
    if outcome.at_rest:
        rows.add_row("rho*, where the run leads, is", outcome.rest)
    if not outcome.config.way.coupled:
        rows.add_row("reports are held against", outcome.reports)
    rows.add_row("steps of rho are", outcome.behaviour)
    rows.add_row("rounds, seconds", f"{outcome.config.rounds}, {outcome.seconds:.1f}")
    rows.add_row("verdict", plain(verdict(outcome.checks, claimed(outcome.config))))
    for check in outcome.checks:
        if not check.passed:
            rows.add_row(plain(f"failed: {in_words(check)}"), "")
    for one in outcome.left_out:
        rows.add_row(plain(f"left out: {one.what} ({one.where})"), f"{one.count:,}")
    console = Console(width=100, highlight=False)
    with console.capture() as printed:
        console.print(rows, end="")
    return printed.get()
