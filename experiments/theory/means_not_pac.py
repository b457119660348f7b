"""Appendix C.1: with means of losses an active user's weight does not grow, and nobody is PAC*.

The paper takes sums of losses over a user's points since with means "the weight of an honest active
user's local loss will not increase as a node provides more and more data". Local PAC* learning
(Definition 1) then fails: the adversaries' pull through R is against a curvature that stays.

Measured: the honest user of ``thm2-linear-pac`` and ``thm3-logistic-pac`` among the same
adversaries under squared l2, its distance to theta_dagger by its number of points I, once with
sums and once with means of everybody's losses, lam alike. With sums it falls as I^-1/2; with means
it tends to where an infinity of points leaves it. For least squares that is known: with means the
Hessian of the user's loss tends to ``1 + 2 nu``, and the user is left ``2 lam ||rho -
theta_dagger|| / (1 + 2 nu + 2 lam)`` from theta_dagger, but for nu's own pull.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.studies.drawing import legend_above, medians
from experiments.studies.power_law import exponent
from experiments.studies.standing import Stated
from experiments.studies.study import Result, Setting, Study
from experiments.theory.pac import ENOUGH, NU, Learner, convex_equilibrium
from experiments.theory.queries import cube_queries, normal_queries
from pfl_flower.objective.local_loss import Reduction
from pfl_flower.objective.losses import LOSSES
from pfl_flower.objective.models import Linear
from pfl_flower.objective.regularizers import SquaredL2
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.checks import Claim, at_least, at_most, between
from pfl_flower.run.figures import PALETTE, save
from pfl_flower.solvers.population import Population

NAME = "means-are-not-pac"
LAM = 1.0
QUERIES = {"least-squares": normal_queries, "logistic": cube_queries}
REDUCTIONS: tuple[Reduction, ...] = ("sum", "mean")
SIZES, QUICK_SIZES = (10, 32, 100, 316, 1000, 3162, 10_000, 31_623, 100_000), (10, 1000, 100_000)
UPPER = 1000
"""Exponents are fitted from here on."""


def coupled(learner: Learner, user: UserData, reduction: Reduction) -> Population:
    """Return the honest user and the adversaries, with sums or means of their losses."""
    return Population(
        [user, *learner.adversaries],
        model=Linear(len(learner.preferred), 1),
        loss=LOSSES[learner.loss](),
        regularizer=SquaredL2(lam=LAM),
        nu=NU,
        reduction=reduction,
    )


def measure(setting: Setting) -> dict[str, Any]:
    """Follow the honest user's distance to theta_dagger, with sums and with means."""
    sizes = QUICK_SIZES if setting.quick else SIZES
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    for loss, queries in QUERIES.items():
        learner = Learner.draw(loss, queries, setting)
        for reduction in REDUCTIONS:
            setting.say(f"{loss}, {reduction}")
            found = []
            for points in sizes:
                users = coupled(learner, learner.data(points, 0), reduction)
                ended = convex_equilibrium(users, None)
                found.append(learner.miss(ended.theta[0]))
            upper = [index for index, points in enumerate(sizes) if points >= UPPER]
            large = [sizes[index] for index in upper]
            case = f"{reduction}, {loss}"
            curves[case] = found
            metrics[f"exponent, {reduction}: {loss}"] = exponent(large, [found[i] for i in upper])
            metrics[f"last, {reduction}: {loss}"] = found[-1]
            if case == "mean, least-squares":
                metrics["over limit"] = found[-1] / _limit(learner, ended.rho)
    return {"metrics": metrics, "sizes": sizes, "curves": curves}


def _limit(learner: Learner, rho: torch.Tensor) -> float:
    """Return the distance that infinitely many points leave, least squares with means."""
    pull = 2 * NU * learner.preferred + 2 * LAM * (learner.preferred - rho)
    return float(torch.linalg.vector_norm(pull) / (1 + 2 * NU + 2 * LAM))


OFF = 0.1
SUCCESS = (
    Claim("last, sum", at_most(ENOUGH), "sums: 100,000 points are enough"),
    Claim("exponent, sum", at_most(-0.25), "sums: the distance falls"),
)
ALWAYS = (
    Claim("last, mean", at_least(2 * ENOUGH), "means: 100,000 points are not enough"),
    Claim("exponent, mean", between(-OFF, OFF), "means: the distance stays"),
)
LIMIT = Claim("over limit", between(1 - OFF, 1 + OFF), "means: it is what is predicted")


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw the distance to theta_dagger against the honest user's points."""
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    sizes = results[0]["sizes"]
    for axes, loss in zip(panels, QUERIES, strict=True):
        for colour, reduction in zip(PALETTE, REDUCTIONS, strict=False):
            values = np.array([result["curves"][f"{reduction}, {loss}"] for result in results])
            medians(axes, sizes, values, colour=colour, label=f"{reduction}s")
        axes.axhline(ENOUGH, color="black", linestyle=":", label=r"$\epsilon = 0.1$")
        axes.set(xscale="log", yscale="log", xlabel="points I of the honest user", title=loss)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(r"$\|\theta_h^* - \theta_h^\dagger\|$")
    legend_above(figure, panels[0], 3)
    save(figure, folder, NAME)


STUDY = Study(
    name=NAME,
    claim="With means of losses instead of sums no honest user is sure to learn its own model.",
    words=lambda m: (
        f"With 100,000 points the user is at most {m.high('last, sum: *'):.2g} from theta_dagger "
        f"with sums and at least {m.low('last, mean: *'):.2g} with means. The distance goes as "
        f"I^{m.mean('exponent, sum: *'):z.2f} and I^{m.mean('exponent, mean: *'):z.2f}; for least "
        f"squares with means it is {m.mean('over limit'):.3f} of what is predicted."
    ),
    measure=measure,
    draw=draw,
    success=SUCCESS,
    always=(*ALWAYS, LIMIT),
    setting=(
        "The honest user and the four adversaries of thm2-linear-pac and thm3-logistic-pac, "
        "squared l2, lam = 1, equilibria."
    ),
    paper=(
        Stated(
            what="with means an active user's weight does not grow, so that it does not learn",
            where="Appendix C.1",
            claim=Claim("last, mean", at_least(2 * ENOUGH)),
            against=at_most(ENOUGH),
            why="Definition 1 for epsilon = 0.1 and 100,000 points, with a margin of as much",
        ),
        Stated(
            what="with sums it does",
            where="Appendix C.1",
            claim=Claim("last, sum", at_most(ENOUGH)),
            against=at_least(2 * ENOUGH),
            why="the same",
        ),
    ),
)
