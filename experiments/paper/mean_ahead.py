"""Figure 5's exception: why the active user's own model may do better with the mean (lam = 0.01).

Appendix C says that sums of losses beat means whatever lam. With two layers and lam = 0.01 the
active user's model does not obey: it has 54 % wrong labels, nu = 0, and little to hold it back.
Given everybody else's best answers it minimises ``w L(theta) + P(theta)``,

    P(theta) = min_{rho, theta_i}  lam ||rho - theta||^2
                                   + sum_i (w_i L_i(theta_i) + lam ||rho - theta_i||^2)

with L the means of losses; w = w_i = 1 for means, and for scaled sums each user's number of points
over everybody's mean number. Taking rho = theta_i = theta shows ``P <= sum_i w_i L_i(theta)``. So

* only lam / w counts while rho stays where it is: the mean's active user has a ridge around rho
  that is w = 10.98 times as strong (60,000 points; here, of 2,000, 10.5 times);
* under sums rho follows the active user, as P is at most what the idle users' points weigh, a
  600th of its own with 60,000 points, a 20th with 2,000: a larger lam makes no ridge;
* under means ten idle users of ten wrong points each hold rho back, but only for so long. All
  models may shift together where none of their hundred points sees it (of 784 pixels), at no cost
  whatever lam: at rest there is no ridge either;
* a ridge of its own, ``nu = lam w``, gives sums what means have (the active user, that is: nu is
  everybody's, and more than the idle users' scaled losses bear).

The mean is ahead because nothing else regularises the active user, and while rho lags. Measured on
a problem that takes minutes (2,000 points, 64 hidden units); and at rest, where a minimiser can be
had: with the linear model, at full size, by L-BFGS over rho and all theta (first seed alone). There
sums are an active user alone to 1/600, means have the idle users' wrong points and no ridge.
Accuracies are those of the active user's model on the test set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.paper.curves import draw_curve
from experiments.paper.mean_at_rest import MEAN, REST, SUM, linear_at_rest
from experiments.paper.runs import run_variants
from experiments.paper.sums_and_means import BASE
from experiments.studies.drawing import legend_above
from experiments.studies.standing import DIGIT, GUESSING, Stated
from experiments.studies.study import Result, Setting, Study
from experiments.studies.variants import Keys
from experiments.studies.wording import Measured
from pfl_flower.run.checks import Claim, above, at_least, at_most, below, between
from pfl_flower.run.figures import save

NAME = "fig5-mean-ahead"
LAM, POINTS = 0.01, 2000
WEIGHT = 11 / (1 + 100 / POINTS)
"""What the active user's mean loss counts for in a scaled sum: its points over the mean number."""
ROUNDS, LONG = 200, 1000
QUICK_LONG = 400
TIGHTER: Keys = {**SUM, "lam": LAM * WEIGHT}
HELD: Keys = {"server-lr": 1e-12, "server-lr-floor": 0.0}
"""A server whose steps are too short to be seen: rho stays at its start."""
LONGER: Mapping[str, Keys] = {"sum": SUM, "mean": MEAN}
SHORT: Mapping[str, Keys] = {
    "sum, lam w": TIGHTER,
    "sum, nu": {**SUM, "nu": LAM * WEIGHT},
    "mean, rho held": {**MEAN, **HELD},
    "sum, lam w, rho held": {**TIGHTER, **HELD},
}
PANELS = (("active_accuracy", "test accuracy, active user"), ("norm_rho", "norm of rho"))


def variants(*, quick: bool) -> dict[str, Keys]:
    """Return sum and mean for many rounds, and for the study's what makes one of the other."""
    base: Keys = {
        **BASE,
        "points-per-user": f"{POINTS},10",
        "model": "two-layer",
        "hidden": 64,
        "lam": LAM,
        "label-noise": 0.6,
    }
    more = QUICK_LONG if quick else LONG
    asked = [(LONGER, more), (SHORT, ROUNDS)]
    return {
        label: {**base, **keys, "rounds": rounds}
        for runs, rounds in asked
        for label, keys in runs.items()
    }


def measure(setting: Setting) -> dict[str, Any]:
    """Run all, and compare the active user's accuracy after 200 rounds and after 1,000."""
    found = run_variants(setting, variants(quick=setting.quick))
    curves = found["curves"]
    early = {label: _at(curves[label]["active_accuracy"], ROUNDS) for label in (*LONGER, *SHORT)}
    late = {label: found["metrics"][f"{label}: active_accuracy"] for label in LONGER}
    metrics = {f"active: {label}": value for label, value in early.items()}
    metrics |= {f"active in the end: {label}": value for label, value in late.items()}
    metrics |= {
        "mean ahead of sum": early["mean"] - early["sum"],
        "mean ahead of sum, lam w": early["mean"] - early["sum, lam w"],
        "mean ahead of sum, nu": early["mean"] - early["sum, nu"],
        "mean ahead of sum, rho held": early["mean, rho held"] - early["sum, lam w, rho held"],
        "mean, gained by later rounds": late["mean"] - early["mean"],
    }
    if setting.seed == STUDY.seeds[0] and not setting.quick:
        metrics |= linear_at_rest(setting, LAM)
    return {"metrics": metrics, "curves": curves}


def _at(curve: Mapping[str, Sequence[float]], round: int) -> float:
    """Return a curve's value at a round, or at the last before it that was evaluated."""
    reached = [at for at in curve["round"] if at <= round]
    return float(curve["value"][len(reached) - 1])


ALIKE = 0.05
"""What runs of Adam that differ in rounding alone come to differ by, averaged over seeds."""
CLAIMS = (
    Claim("mean ahead of sum", above(0), "the exception: the mean is ahead"),
    Claim("mean ahead of sum, lam w", above(0), "more lam gives it to no sum, since rho follows"),
    Claim(
        "mean ahead of sum, rho held",
        between(-ALIKE, ALIKE),
        "with rho held only lam / w counts",
        average=True,
    ),
    Claim(
        "mean ahead of sum, nu",
        at_most(ALIKE),
        "a ridge of its own gives the sum as much",
        average=True,
    ),
    Claim("mean, gained by later rounds", below(0), "as rho follows the mean loses it"),
    Claim("active: sum", at_least(2 * GUESSING), "the network learns"),
)
AT_REST = (
    Claim("gradient left", at_most(0.01), "at rest: it is at rest", some=True),
    Claim("rest, mean ahead of sum", below(0), "at rest: the sum is ahead", some=True),
    Claim(
        "rest, sum ahead of alone",
        between(-DIGIT, DIGIT),
        "at rest: with the sum the active user is as good as alone",
        some=True,
    ),
    Claim("rest, ridge over mean", at_most(0.5), "at rest: the mean has no ridge", some=True),
)
"""Of the linear model. Half of the models' norm is what no ridge of that strength leaves."""
PREDICTED = (
    Stated(
        what="with rho held only lam / w counts",
        where="predicted",
        claim=Claim("mean ahead of sum, rho held", between(-ALIKE, ALIKE)),
        against=at_least(2 * ALIKE),
        why="what rounding comes to; the opposite: the mean is ahead by twice as much all the same",
    ),
    Stated(
        what="as rho follows the mean loses what it was ahead by",
        where="predicted",
        claim=Claim("mean, gained by later rounds", below(0)),
        against=above(0),
        why="the prediction's own, and the opposite",
    ),
)


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw the active user's accuracy and the norm of rho over rounds: 200 of all, 1,000 of two."""
    figure = Figure(figsize=(10.0, 6.0), layout="constrained")
    grid = figure.subplots(2, 2)
    rows = zip(grid, ((*LONGER, *SHORT), tuple(LONGER)), strict=True)
    for row, labels in rows:
        for axes, (column, title) in zip(row, PANELS, strict=True):
            for colour, label in enumerate(labels):
                style = "-" if label in LONGER else "--"
                draw_curve(axes, results, label, column, colour=colour, label=label, style=style)
            axes.set(xlabel="round", ylabel=title)
            axes.grid(alpha=0.3)
    for axes in grid[0]:
        axes.set_xlim(0, ROUNDS)
    legend_above(figure, grid[0][0], 3)
    save(figure, folder, NAME)


def _rest_in_words(m: Measured) -> str:
    """Return the accuracies at rest; nothing for the quick form."""
    if "active at rest: sum" not in m.values:
        return ""
    found = (f"{label} {m.mean(f'active at rest: {label}'):.3f}" for label in REST)
    return f" The linear model at rest, full size: {', '.join(found)}."


STUDY = Study(
    name=NAME,
    claim=(
        "Ours, predicted from theory: with two layers and little lam the mean's active model is "
        "ahead of the sum's only because nothing else regularises it, and only while rho lags."
    ),
    words=lambda m: (
        f"Active user's accuracy after 200 rounds: mean {m.mean('active: mean'):.3f}, sum "
        f"{m.mean('active: sum'):.3f}, sum with the mean's lam / w "
        f"{m.mean('active: sum, lam w'):.3f}, sum with nu = lam w {m.mean('active: sum, nu'):.3f}. "
        f"With rho held {m.mean('active: mean, rho held'):.3f} and "
        f"{m.mean('active: sum, lam w, rho held'):.3f} for equal lam / w. In the end the mean "
        f"has {m.mean('active in the end: mean'):.3f}, the sum "
        f"{m.mean('active in the end: sum'):.3f}.{_rest_in_words(m)}"
    ),
    measure=measure,
    draw=draw,
    seeds=(1, 2, 3),
    always=(*CLAIMS, *AT_REST),
    paper=PREDICTED,
    has_runs=True,
    setting=(
        "FashionMNIST, 60% of the training labels redrawn; 10 idle users of 10 points, an active "
        "one of 2,000; two layers of 64 hidden units, squared l2, lam = 0.01, nu = 0; Adam steps "
        f"as in Figures 4 to 13, {ROUNDS} rounds, sum and mean {LONG:,}. At rest: the linear "
        "model, 60,000 points, seed 1, L-BFGS. The quick form has "
        f"{QUICK_LONG} rounds for {LONG:,}, and does not look at rest."
    ),
)
