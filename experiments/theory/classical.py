"""Section 2: as lam grows, personalised learning becomes classical federated learning.

How fast? Classical federated learning minimises ``sum_n L_n(rho)`` by ``rho_{t+1} = rho_t - eta
sum_n g_n(rho_t)``, with ``g_n = grad L_n`` and ``H_n`` its Hessian. Here users report ``grad_rho
R(rho, theta_n) = grad L_n(theta_n)``. Derived before anything was measured:

* squared l2: ``2 lam (rho - theta_n) = grad L_n(theta_n)``, so that ``rho - theta_n = g_n/(2 lam) +
  O(lam^-2)`` and the report is ``g_n - H_n g_n/(2 lam) + O(lam^-2)``;
* smooth l2: near 0 it is ``lam + lam ||z||^2/2``, squared l2 with half the lam: ``g_n - H_n g_n/lam
  + O(lam^-2)``;
* l2: wherever ``||g_n|| <= lam`` for every user, ``theta_n = rho`` is the local optimum and the
  report is ``g_n`` itself.

So with c = 2 and 1 the two smooth ones approach like 1/lam, at rest and on the way,

    rho*_lam - rho*      = 1/(c lam) H^{-1} sum_n H_n g_n             + O(lam^-2),   H = sum_n H_n,
    delta_{t+1}          = (I - eta H) delta_t + eta/(c lam) sum_n H_n g_n,

each at the classical optimum, or at the classical rho_t; and l2 has no rate: it *is* classical
federated learning from a finite lam on, ``max_n ||g_n(rho*)||`` at rest and ``max_{t,n}
||g_n(rho_t)||`` on the way, and is not below. Where users agree, ``g_n = 0`` at rest and nothing
is left of the difference for any lam.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.drawing import legend_above, shade
from experiments.studies.power_law import exponent
from experiments.studies.standing import FIGURE, Stated
from experiments.studies.study import Result, Setting, Study
from experiments.studies.wording import Measured
from experiments.theory.classical_descent import Classical
from experiments.theory.honest_users import draw_scenario
from experiments.theory.scenario import Scenario
from pfl_flower.objective.regularizers import L2, Regularizer, SmoothL2, SquaredL2
from pfl_flower.run.checks import Claim, above, at_most, between
from pfl_flower.run.figures import PALETTE, save

LOSSES = ("logistic", "least-squares")
SMOOTH: dict[str, tuple[type[Regularizer], int]] = {
    "squared l2": (SquaredL2, 2),
    "smooth l2": (SmoothL2, 1),
}
"""The regularisers that approach like 1/lam, and c."""
USERS, POINTS, DIM, NU = 6, 40, 5, 0.1
ROUNDS, QUICK_ROUNDS = 60, 30
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""lam, in units of the largest curvature of an L_n, or of its largest gradient on the way."""
FITTED = 10.0
"""Strengths from here on are those whose exponent is measured."""
BESIDE = (0.9, 1.01)
"""lam of l2 in units of what theory says that it takes: once too little, once enough."""
WHERE = ("at rest", "on the way")


def measure(setting: Setting) -> dict[str, Any]:
    """Return distances to classical federated learning by lam, their exponents and constants."""
    rounds = QUICK_ROUNDS if setting.quick else ROUNDS
    metrics: dict[str, float] = {}
    curves: dict[str, dict[str, dict[str, list[float]]]] = {}
    for loss in LOSSES:
        scenario = draw_scenario(
            loss, L2(lam=1.0), seed=setting.seed, users=USERS, points=POINTS, dim=DIM, nu=NU
        )
        classical = Classical.of(scenario, rounds)
        curves[loss] = {}
        for name, (kind, c) in SMOOTH.items():
            setting.say(f"{loss}, {name}")
            found = [classical.apart(coupled(scenario, kind, s, classical)) for s in STRENGTHS]
            curves[loss][name] = dict(zip(WHERE, map(list, zip(*found, strict=True)), strict=True))
            predicted = classical.predicted(c)
            for where, first_order in zip(WHERE, predicted, strict=True):
                label = f"{loss}, {name}, {where}"
                metrics |= approach(curves[loss][name][where], first_order / classical.unit, label)
        setting.say(f"{loss}, l2")
        found = [classical.apart(coupled(scenario, L2, s, classical)) for s in STRENGTHS]
        curves[loss]["l2"] = dict(zip(WHERE, map(list, zip(*found, strict=True)), strict=True))
        curves[loss]["l2"]["needed"] = [need / classical.unit for need in classical.needed]
        metrics |= around(scenario, classical, f"{loss}, l2")
    return {"metrics": metrics, "curves": curves}


def coupled(
    scenario: Scenario, kind: type[Regularizer], strength: float, classical: Classical
) -> Scenario:
    """Return the scenario with a regulariser of so many times the unit of lam."""
    return replace(scenario, regularizer=kind(lam=strength * classical.unit))


def approach(distances: Sequence[float], constant: float, label: str) -> dict[str, float]:
    """Return the exponent of lam, the last distance over the first, and over what is predicted."""
    pairs = [(s, d) for s, d in zip(STRENGTHS, distances, strict=True) if s >= FITTED]
    strengths, fitted = zip(*pairs, strict=True)
    return {
        f"{label}: exponent": exponent(strengths, fitted),
        f"{label}: left": distances[-1] / distances[0],
        f"{label}: over prediction": distances[-1] * STRENGTHS[-1] / constant,
    }


def around(scenario: Scenario, classical: Classical, label: str) -> dict[str, float]:
    """Return l2's distances a little below and a little above the lam that theory says it takes."""
    found = {}
    for index, (where, need) in enumerate(zip(WHERE, classical.needed, strict=True)):
        for name, factor in zip(("below", "above"), BESIDE, strict=True):
            at = coupled(scenario, L2, factor * need / classical.unit, classical)
            found[f"{label}, {where}: {name}"] = classical.apart(at)[index]
    return found


LEFT = 1e-8
"""Distance that is none: ten times what residuals of 1e-9 and curvatures of 1 and more leave."""
SLACK = 0.05
"""The next term is of relative size ``1/strength``: 0.1 at the first of the fitted lam, which over
two decades makes ``log10(1.1)/2 = 0.02`` of exponent; twice that, and rounding."""
NEXT = 10 / STRENGTHS[-1]
"""Ten times that term at the last lam."""


def _claims() -> Iterator[Claim]:
    for loss in LOSSES:
        for where in WHERE:
            for name in SMOOTH:
                label = f"{loss}, {name}, {where}"
                yield Claim(f"{label}: exponent", between(-1 - SLACK, -1 + SLACK))
                yield Claim(f"{label}: over prediction", between(1 - NEXT, 1 + NEXT))
            yield Claim(f"{loss}, l2, {where}: above", at_most(LEFT))
            yield Claim(f"{loss}, l2, {where}: below", above(100 * LEFT))


def words(m: Measured) -> str:
    """Return the exponents, the constants and what l2 does."""
    return (
        f"Under squared and smooth l2 rho's distance to classical federated learning falls as lam "
        f"to the power of {m.low('*exponent'):.3f} to {m.high('*exponent'):.3f}, at rest and on "
        f"the way; at the largest lam it is {m.low('*over prediction'):.4f} to "
        f"{m.high('*over prediction'):.4f} of the first-order prediction. Under l2 it is at most "
        f"{m.high('*l2, *: above'):.0e} at 1.01 of the predicted lam, and at least "
        f"{m.low('*l2, *: below'):.0e} at 0.9 of it."
    )


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw distances against lam: the mean over seeds, and their range."""
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    panels = figure.subplots(1, len(LOSSES) * len(WHERE), sharex=True, sharey=True)
    places = [(loss, where) for loss in LOSSES for where in WHERE]
    for axes, (loss, where) in zip(panels, places, strict=True):
        _panel(axes, results, loss, where)
    panels[0].set_ylabel("distance of rho to classical\nfederated learning, relative")
    legend_above(figure, panels[0], 4, fontsize=9)
    save(figure, folder, "classical")


FLOOR = 1e-12
"""What distances of nothing are drawn at."""


def _panel(axes: Axes, results: Sequence[Result], loss: str, where: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel=r"$\lambda$ / unit", title=f"{loss},\n{where}")
    for colour, name in zip(PALETTE, (*SMOOTH, "l2"), strict=False):
        rows = np.array([result["curves"][loss][name][where] for result in results])
        values = np.maximum(rows, FLOOR)
        axes.plot(STRENGTHS, np.exp(np.log(values).mean(axis=0)), "o-", color=colour, label=name)
        shade(axes, np.array(STRENGTHS), values, colour=colour)
    first = np.maximum(results[0]["curves"][loss]["squared l2"][where], FLOOR)
    guide = first[-1] * STRENGTHS[-1] / np.array(STRENGTHS[3:])
    axes.plot(STRENGTHS[3:], guide / 3, ":", color="grey", label=r"$\propto 1/\lambda$")
    axes.grid(alpha=0.3)


STUDY = Study(
    name="classical",
    claim=(
        "Section 2: the limit of large lam is classical, non-personalised federated learning. The "
        "rates are ours: 1/lam with a known constant for squared and smooth l2; for l2 a finite "
        "lam that is enough."
    ),
    words=words,
    measure=measure,
    draw=draw,
    setting=(
        "Six users of logistic regression and of least squares with 40 points in five dimensions, "
        "each with a model of its own; exact local solves and exact equilibria; 60 rounds from 0 "
        "with one step size for all lam."
    ),
    always=tuple(_claims()),
    paper=tuple(
        Stated(
            what=f"large lam is classical federated learning ({loss}, {name}, {where})",
            where="Section 2",
            claim=Claim(f"{loss}, {name}, {where}: left", at_most(FIGURE), f"{loss}, {name}"),
            against=above(0.5),
            paper="0",
            value=0.0,
            why="what a figure does not tell from nothing, of the distance at the least lam; the "
            "opposite: half of it is left",
        )
        for loss in LOSSES
        for name in SMOOTH
        for where in WHERE
    ),
)
