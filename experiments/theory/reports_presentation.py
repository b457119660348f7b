"""How reports and data that stay are told apart: claims, comparisons and the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.drawing import legend_above, medians
from experiments.studies.standing import Stated, titled
from experiments.studies.study import Result, Study
from experiments.theory.reports_against_data import (
    NAME,
    POINTS,
    SOME,
    USERS,
    displacement,
    measure,
)
from pfl_flower.run.checks import Claim, at_least, at_most, between
from pfl_flower.run.figures import PALETTE, save

EXACT = at_most(1e-6)
"""Equal, but for equilibria that are solved to a residual of 1e-8."""
NEAR = 0.1
"""By how much an exponent may be off over two and a half decades, and a distance off what
is predicted: local models of 1,000 points are ``0.5 sqrt(4/1000) = 0.03`` from what their users
prefer, and follow rho by lam over 1,000."""
SUCCESS = (
    Claim("exponent, reports", at_least(-NEAR), "what reports move does not fall with m"),
    Claim("over prediction", between(1 - NEAR, 1 + NEAR), "reports move rho as predicted"),
    Claim("reports over data", at_least(10), "reports move rho farther than data that stay"),
    Claim("held", EXACT, "data hold rho where reports took it"),
    Claim("remade", EXACT, "data that are made anew reach what reports reach"),
    Claim("worlds", between(1 - NEAR, 1 + NEAR), "data that look honest attain f/(n - f)"),
)
ALWAYS = (
    Claim("exponent, data", at_most(-1 + 2 * NEAR), "what data that stay move falls as 1/m"),
    Claim("over sqrt", at_most(1), "reports stay below 2 sqrt(f/(n - 2f))"),
)


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw how far rho moves when one point is replaced, against m and against f."""
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = {"reports": "reports", "data": "data that stay", "honest": "nobody attacks"}
    for axes, key, x in ((left, "size", "sizes"), (right, "number", "numbers")):
        for colour, (who, label) in zip(PALETTE, labels.items(), strict=False):
            values = np.array([[one[who] for one in result["curves"][key]] for result in results])
            style = ":" if who == "honest" else "-"
            medians(axes, results[0][x], values, style, colour=colour, label=label)
        axes.set(yscale="log")
        axes.grid(alpha=0.3)
    f = np.array(results[0]["numbers"])
    right.plot(f, [2 * displacement(n) for n in f], "k+", label="predicted")
    right.plot(f, 2 * np.sqrt(f / (USERS - 2 * f)), "k--", label=r"$2\sqrt{f/(n-2f)}$")
    right.plot(f, f / (USERS - f), "k-.", label=r"$f/(n-f)$")
    left.set(xscale="log", xlabel=f"points m of a user, f = {SOME}")
    left.set_ylabel(r"$\|\rho^*(S') - \rho^*(S)\|$")
    right.set(xlabel=f"attackers f of {USERS}, m = {POINTS:,}")
    legend_above(figure, right, 3)
    save(figure, folder, NAME)


def _spread(metrics: Mapping[str, float]) -> float:
    found = [value for name, value in metrics.items() if name.startswith("over sqrt: ")]
    return max(found) / min(found)


BOUDOU = "Boudou et al. 2025 (arXiv 2506.18020)"
PAPER = (
    Stated(
        what="Byzantine reports are worse for generalisation than poisoned data",
        where=BOUDOU,
        claim=Claim("reports over data", at_least(1)),
        against=at_most(1),
        why="how far one replaced point moves rho, with 10,000 points a user",
    ),
    Stated(
        what="what reports add is of the order of sqrt(f/(n - 2f))",
        where=BOUDOU,
        claim=Claim(_spread, at_most(1.5), "over sqrt(f/(n - 2f)): largest over smallest"),
        against=at_least(9),
        paper="a factor that f does not change",
        why="predicted is sqrt(f/n) times as much; the opposite: as much as f itself, 1 to 9",
    ),
    Stated(
        what="what gradient attacks can do to given honest data, data poisoning can",
        where="Section 6",
        claim=titled(SUCCESS, "data that are made anew reach what reports reach"),
        why="equal but for the solvers' rounding",
    ),
    Stated(
        what="so the bound f/(n - f) of worlds that look alike is one for data poisoning",
        where="Section 6",
        claim=titled(SUCCESS, "data that look honest attain f/(n - f)"),
        against=at_most(0.5),
        why="attained by symmetry, but for the honest users' noise",
    ),
)
STUDY = Study(
    name=NAME,
    claim=(
        "For given honest data whatever reports do data do as well; they part where one honest "
        "point is replaced: reports may answer to that, and a dataset that stays may not."
    ),
    words=lambda m: (
        f"One replaced point lets reports move rho by {m.low('over prediction: *'):.3f} to "
        f"{m.high('over prediction: *'):.3f} of what is predicted, "
        f"as m^{m.mean('exponent, reports'):z.2f}; data that stay let it move as "
        f"m^{m.mean('exponent, data'):z.2f}, "
        f"{m.low('reports over data'):.0f} times less with 10,000 points. Data that are made anew "
        f"reach what reports reach to {m.high('remade: *'):.0e}."
    ),
    measure=measure,
    draw=draw,
    success=SUCCESS,
    always=ALWAYS,
    setting=(
        "Least squares in 4 dimensions, 20 users of whom f attack, smooth l2, lam = 1; all honest "
        "users prefer the same model; equilibria."
    ),
    paper=PAPER,
)
