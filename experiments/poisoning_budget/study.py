"""What poisoning methods buy for their labels: at the equilibrium, and in the paper's protocol.

Claim (Section 5.3, Figure 3): 2,000 queries near the indifference subspace are data that move rho
to the target. Measured by ``1 - ||rho - target|| / ||honest rho - target||``, once at the exact
equilibrium and once after 250 rounds of single Adam steps, the poisoned user's model started at
theta_spade plus noise (Appendix I.3); the honest rho is rho*_honest, or that of the same 250 rounds
without the attack. (Started at 0, these rounds leave the honest digits 0.51 of the way from
rho*_honest to the target: short runs must be compared with short runs.)

Measured, logistic regression (d = 10, ten honest users, noise 0.01; mean of seeds 1-5) and digits
(ten honest users of 500, seed 1):

    labels, manipulation                       logistic            digits
    bound on labels that hold the target       5,790               88,480
    repeated, at the bound: equilibrium        1 within 1e-11      --
    matching: equilibrium, over the bound      1, 0.003 %          1, 2.8 % (90,933 labels)
    indifference, 2,000: equilibrium           -0.01               0.32
    indifference, 2,000: 250 rounds            0.58                0.66
    theta_spade's start, no labels: 250 rounds 0.54                0.58
    2,000 labels, start at 0: 250 rounds       0.00                0.03
    random queries, 2,000: equilibrium         0.23                0.56
    indifference, 2,000,000: equilibrium       0.95                0.96

So the transient shows the start, not the data: nine tenths of it need no label, it ranks exact data
no higher than 2,000 labels, and 8,000 rounds leave 0.2 % of its excess over the equilibrium
(logistic). Nor are indifferent queries cheap: at up to 20,000 labels random ones buy more, and on
digits both buy 0.7 at 96,000. What holds theta_s is curvature, of which small noise makes too
little (see ``alpha-grows-with-n``). Exact data at the bound do hold the target, and no cheaper data
that were tried are feasible. The bound is on holding one point: by distance alone random queries on
digits come as near with less (0.56 of the way for 2,000 labels, where holding rho half way along
the straight line takes 2,676).

Equilibria of the digits start at the aim, for speed; that of matching at the target starts at 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.poisoning_budget.scenarios import binary_scenario, digits_scenario
from experiments.poisoning_budget.trials import (
    METHODS,
    QUERIES,
    ROUNDS,
    Trial,
    bound_by_hand,
    compare,
)
from experiments.studies.drawing import shade
from experiments.studies.standing import FIGURE, Stated
from experiments.studies.study import Result, Setting, Study
from pfl_flower.run.checks import Claim, at_least, at_most, between
from pfl_flower.run.figures import PALETTE, save

SEEDS = 1, 2, 3, 4, 5
LONG, QUICK_LONG = 8000, 4000
"""Rounds after which a transient has passed, or is passing."""
Amounts = Mapping[str, tuple[float, ...]]
BINARY: Amounts = {
    "sampling": (200, QUERIES, 20_000, 100_000),
    "indifference": (200, QUERIES, 20_000, 200_000, 2_000_000),
    "matching": (0.1, 0.2, 0.4, 0.7, 1),
    "repeated": (0.1, 0.2, 0.4, 0.7, 1),
}
DIGITS: Amounts = {
    "sampling": (500, QUERIES, 8_000, 32_000, 96_000),
    "indifference": (500, QUERIES, 16_000, 96_000, 2_000_000),
    "matching": (0.5, 0.7, 0.85, 1),
}
QUICK: Amounts = {
    "sampling": (QUERIES,),
    "indifference": (QUERIES,),
    "matching": (1,),
    "repeated": (1,),
}
EXACT = 1e-6
"""Of what is exact but for the residual that the equilibria are solved to."""
HALF, LITTLE = 0.5, 0.1
"""Half of the way, from where on rho is nearer to the other end; a tenth of it counts as little."""
GAP = 0.05
"""What matching may cost over the bound: the gap that the quick form asks of its search."""
LINES = {"matching": {"linewidth": 3, "alpha": 0.6, "markersize": 7}}
"""How curves that others lie upon are drawn."""
KINDS = {"binary": "logistic regression, d = 10", "digits": "digits, softmax, d = 650"}


def measure(setting: Setting) -> dict[str, Any]:
    """Try the small problem, and in the first of the seeds that were asked for the digits too."""
    trial = Trial.of(binary_scenario(setting.seed, idle=setting.control))
    metrics, drawn = _measure(setting, trial, BINARY)
    if not setting.control:
        metrics["binary left"] = trial.left(QUICK_LONG if setting.quick else LONG)
    exact = drawn["curves"]["repeated"][-1]["labels"]
    metrics["binary repeated over bound by hand"] = exact / bound_by_hand(trial) - 1
    scenes = {"binary": drawn}
    if setting.seed == (setting.options.seeds or SEEDS)[0]:
        digits = digits_scenario(setting.seed, idle=setting.control, quick=setting.quick)
        trial = Trial.of(digits, warm=True, gap=GAP if setting.quick else 0.02)
        more, scenes["digits"] = _measure(setting, trial, DIGITS)
        metrics |= more
    return {"metrics": metrics, "scenes": scenes}


def _measure(
    setting: Setting, trial: Trial, amounts: Amounts
) -> tuple[dict[str, float], dict[str, Any]]:
    name = trial.scenario.name
    points: dict[str, dict[float, dict[str, float]]] = {}
    for method in amounts:
        points[method] = {}
        for amount in (QUICK if setting.quick else amounts)[method]:
            setting.say(f"{name}, {method}, {amount:g}")
            points[method][amount] = trial.play(method, amount)
    found = compare(points) | trial.starts() | {"honest transient": trial.settled(trial.honest)}
    if not setting.control:
        found["owed to the start"] = found["start alone"] / found["indifference transient"]
    curves = {method: list(curve.values()) for method, curve in points.items()}
    metrics = {f"{name} {key}": float(value) for key, value in found.items()}
    return metrics, {"curves": curves, "bound": found["bound"], "start": found["start alone"]}


def _success() -> Iterator[Claim]:
    """Yield what poisoned data achieve: the digits' in the seeds that have them."""
    claims = {
        "matching miss": (at_most(EXACT), "matching's miss at equilibrium"),
        "indifference transient": (at_least(FIGURE), "2,000 indifferent labels, transient"),
        "excess": (at_least(FIGURE), "their transient over their equilibrium"),
        "owed to the start": (at_least(HALF), "share of it that the start alone gives"),
        "random over indifferent": (at_least(FIGURE), "2,000 random labels over them"),
    }
    for kind in KINDS:
        for metric, (limits, what) in claims.items():
            yield Claim(f"{kind} {metric}", limits, f"{kind}: {what}", some=True)
    yield Claim("binary repeated miss", at_most(EXACT), "binary: repeated's miss at equilibrium")
    yield Claim("binary left", at_most(HALF), "binary: excess left after many rounds")


def _always() -> Iterator[Claim]:
    """Yield what few labels do not buy, and what the data cost."""
    claims = {
        "matching over bound": (between(-1e-9, GAP), "matching over the bound"),
        "below bound": (at_least(1), "datasets below their bound"),
        "below bound feasible": (at_most(0), "feasible ones among them"),
        "indifference equilibrium": (at_most(HALF), "2,000 indifferent labels at equilibrium"),
        "labels alone": (at_most(LITTLE), "transient of the labels without the start"),
        "residual": (at_most(EXACT), "worst residual of an equilibrium"),
    }
    for kind in KINDS:
        for metric, (limits, what) in claims.items():
            yield Claim(f"{kind} {metric}", limits, f"{kind}: {what}", some=True)
    metric = "binary repeated over bound by hand"
    yield Claim(metric, between(-1e-6, 1e-6), "binary: repeated over the bound")


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw manipulation against labels by method: means over seeds, and their range."""
    figure = Figure(figsize=(9.0, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (name, title) in zip(panels, KINDS.items(), strict=True):
        played = [result["scenes"][name] for result in results if name in result["scenes"]]
        axes.set(xscale="log", xlabel="total label weight", ylim=(-0.12, 1.05), title=title)
        axes.grid(alpha=0.3)
        if played:
            _panel(axes, played)
    panels[0].set(ylabel="manipulation of the global model")
    handles = [
        Line2D([], [], color=colour, marker="o", label=method, **_line(method))
        for colour, method in zip(PALETTE, METHODS, strict=False)
    ]
    handles += [
        Line2D([], [], color="grey", label="at equilibrium"),
        Line2D([], [], color="grey", linestyle="--", label=f"after {ROUNDS} rounds"),
        Line2D([], [], color="black", linestyle=":", label=f"after {ROUNDS} rounds, no labels"),
        Line2D([], [], color="black", linewidth=0.8, label="least labels that hold the target"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    save(figure, folder, "budget-curve")


def _line(method: str) -> dict[str, Any]:
    return {"linewidth": 1.5, "markersize": 4, **LINES.get(method, {})}


def _panel(axes: Axes, played: Sequence[Mapping[str, Any]]) -> None:
    for colour, method in zip(PALETTE, METHODS, strict=False):
        rows = [one["curves"].get(method, []) for one in played]
        if not rows[0]:
            continue
        labels = np.exp(np.log([[point["labels"] for point in row] for row in rows]).mean(axis=0))
        for when, style in (("equilibrium", "o-"), ("transient", "--")):
            values = np.array([[point[when] for point in row] for row in rows])
            axes.plot(labels, values.mean(axis=0), style, color=colour, **_line(method))
            if when == "equilibrium":
                shade(axes, labels, values, colour=colour, alpha=0.2)
    axes.axhline(np.mean([one["start"] for one in played]), color="black", linestyle=":")
    bound = np.exp(np.mean(np.log([one["bound"] for one in played])))
    axes.axvline(bound, color="black", linewidth=0.8)


PAPER = (
    Stated(
        what="2,000 queries near the indifference subspace are effective, after 250 rounds",
        where="Section 5.3, Figure 3 (there on MNIST)",
        claim=Claim("digits indifference transient", at_least(HALF), "digits, transient"),
        against=at_most(FIGURE),
        why="rho is nearer to the target than the honest one; the opposite: nothing shows",
    ),
    Stated(
        what="the minimum is indeed a poisoned model",
        where="Appendix I.3",
        claim=Claim("binary indifference equilibrium", at_least(HALF), "logistic, equilibrium"),
        against=at_most(LITTLE),
        why="rho* is nearer to the target than the honest one; the opposite: it has hardly moved",
    ),
)
STUDY = Study(
    name="budget-curve",
    claim=(
        "Section 5.3: 2,000 queries near the indifference subspace are data that bring rho to the "
        "target."
    ),
    words=lambda m: (
        f"Of the way to the target (logistic regression) they buy "
        f"{m.mean('binary indifference transient'):.0%} after 250 rounds, where the poisoned "
        f"model's start alone buys {m.mean('binary start alone'):.0%}, and "
        f"{m.mean('binary indifference equilibrium'):.0%} at the equilibrium. Holding the target "
        f"there takes {m.mean('binary bound'):,.0f} labels; data made for it get "
        f"{m.mean('binary matching equilibrium'):.0%} of the way."
    ),
    measure=measure,
    draw=draw,
    seeds=SEEDS,
    setting=(
        "Ten honest users, squared l2 with lam = 1: logistic regression in ten dimensions (every "
        "seed) and 500 digits each (first seed). 250 rounds of single Adam steps, 0.02 falling to "
        "0.005, server SGD with step 1/(3L); exact minimisers of LOSS."
    ),
    success=tuple(_success()),
    always=tuple(_always()),
    paper=PAPER,
)
