"""What the honest users' points are worth against poisoning: how few labels are "few".

The paper's attack has "remarkably few data": 2,000 points against the others' 6,000 each. Under
squared l2 an honest user's pull on rho at the target is ``g_n = 2 lam (target
- theta_n)``, and theta_n tends to the user's own optimum as its points m grow: the pull grows with
m while ``m curvature << lam`` and stops at ``2 lam ||target - argmin L_n||``. So does what it takes
to hold rho against them: with many points it is decided by lam, the number of users and how far
the target is, and not by how many points they have.

Measured: 10 honest users of logistic regression, a target, and the data of one query that hold rho
there with the least number of labels (``repeated``, proved least; rounded up). Labels are of one
user; the share is of the points of one honest user. Seeds 1 to 3: from 1,000 points on the labels
go as m^0.00 to m^0.16, the pull is within 0.02 % to 2.3 % of its limit, and both go as lam. Held
exactly, rho takes 2,076 to 9,219 labels at lam = 1: few for 100,000 points, many for 1,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.studies.drawing import legend_above, medians
from experiments.studies.power_law import exponent
from experiments.studies.standing import Stated
from experiments.studies.study import Result, Setting, Study
from experiments.theory.honest_users import draw_scenario
from experiments.theory.scenario import Scenario, relative
from pfl_flower.attacks.equivalence import honest_sum
from pfl_flower.attacks.poisoning.repeated import repeated
from pfl_flower.objective.regularizers import SquaredL2
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.checks import Claim, at_least, at_most, between
from pfl_flower.run.figures import PALETTE, save
from pfl_flower.solvers.equilibrium import equilibrium

NAME = "few-points"
USERS, DIM, NU = 10, 5, 0.01
SIZES, QUICK_SIZES = (10, 30, 100, 300, 1000, 3000, 10_000), (10, 1000, 10_000)
LAMS, QUICK_LAMS = (0.1, 1.0, 10.0), (1.0, 10.0)
MANY = 1000
"""From here on points no longer count, for every lam."""


def everybody(setting: Setting, points: int) -> Scenario:
    """Return honest users of so many points, and a target far from their optimum."""
    return draw_scenario(
        "logistic",
        SquaredL2(lam=1.0),
        seed=setting.seed,
        users=USERS,
        points=points,
        dim=DIM,
        nu=NU,
        idle=setting.control,
    )


def shortened(most: Scenario, points: int, lam: float) -> Scenario:
    """Return the same users with the first of their points alone, another lam, the same target."""
    users = tuple(UserData(u.features[:points], u.labels[:points]) for u in most.users)
    return replace(most, users=users, regularizer=SquaredL2(lam=lam), chosen=most.target)


def attack(scenario: Scenario) -> dict[str, float]:
    """Return the honest pull at the target, the labels that hold rho, and how well they do."""
    target = scenario.target
    pull = float(torch.linalg.vector_norm(honest_sum(scenario.honest, target).value))
    data = repeated(scenario.holding(target), integer=True)
    return {
        "pull": pull,
        "ceiling": _ceiling(scenario),
        "labels": data.total_weight,
        "miss": relative(scenario.attempt(data.user()).rho, target),
    }


def _ceiling(scenario: Scenario) -> float:
    """Return ``2 lam ||sum_n target - argmin L_n||``: the pull of users whom rho does not move."""
    lam, alone = scenario.regularizer.lam, torch.zeros_like(scenario.target)
    for user in scenario.users:
        # One user and a rho of its own, which costs nothing.
        alone = alone + equilibrium(replace(scenario, users=(user,)).honest).rho
    return float(2 * lam * torch.linalg.vector_norm(USERS * scenario.target - alone))


def measure(setting: Setting) -> dict[str, Any]:
    """Vary lam and the honest users' points."""
    sizes, lams = (QUICK_SIZES, QUICK_LAMS) if setting.quick else (SIZES, LAMS)
    most = everybody(setting, sizes[-1])
    metrics: dict[str, float] = {}
    curves: dict[str, list[dict[str, float]]] = {}
    many = [index for index, points in enumerate(sizes) if points >= MANY]
    for lam in lams:
        found = []
        for points in sizes:
            setting.say(f"lam {lam:g}, {points} points")
            found.append(attack(shortened(most, points, lam)))
        large = [sizes[index] for index in many]
        metrics |= {
            f"exponent many: lam {lam:g}": exponent(large, [found[i]["labels"] for i in many]),
            f"gained: lam {lam:g}": found[-1]["pull"] / found[0]["pull"],
            f"over ceiling: lam {lam:g}": found[-1]["pull"] / found[-1]["ceiling"],
            f"labels: lam {lam:g}": found[-1]["labels"],
            f"share: lam {lam:g}": found[-1]["labels"] / sizes[-1],
            f"miss: lam {lam:g}": max(one["miss"] for one in found),
        }
        curves[f"{lam:g}"] = found
    return {"metrics": metrics, "sizes": sizes, "curves": curves}


FEW = 2000 / 6000
SUCCESS = (Claim("miss", at_most(1e-6), "the labels hold rho at the target"),)
ALWAYS = (
    Claim("exponent many", between(-0.25, 0.25), "from 1,000 points on the labels needed stay"),
    Claim("over ceiling", between(0.8, 1 + 1e-6), "the pull is that of users whom rho won't move"),
    Claim("gained: lam 10", at_least(2), "at lam = 10 a user of ten points pulls less"),
)
"""The exponent is nearer to 0 than to statistics' 1/2, and the ceiling is met but for lam over the
curvature of 10,000 points, a tenth each: at lam = 10 a hundredth."""


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw the honest pull and the labels that it takes against the honest users' points."""
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = np.array(results[0]["sizes"])
    for colour, lam in zip(PALETTE, results[0]["curves"], strict=False):
        for axes, what in ((left, "pull"), (right, "labels")):
            found = [[one[what] for one in result["curves"][lam]] for result in results]
            values = np.array(found)
            medians(axes, sizes, values, colour=colour, label=f"lam = {lam}")
        ceiling = [[one["ceiling"] for one in result["curves"][lam]] for result in results]
        left.plot(sizes, np.median(ceiling, axis=0), ":", color=colour)
    right.plot(sizes, sizes, "k--", label="as many as one honest user's points")
    left.set(ylabel="pull at the target (dotted: its limit)")
    right.set(ylabel="labels that hold rho at the target")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="points of an honest user")
        axes.grid(alpha=0.3)
    legend_above(figure, right, 4)
    save(figure, folder, NAME)


STUDY = Study(
    name=NAME,
    claim=(
        "Against squared l2 the labels that hold rho at a target do not depend on how many points "
        "honest users have, once they have enough to know their own minds."
    ),
    words=lambda m: (
        f"From 1,000 points on the labels needed go as m^{m.low('exponent many: *'):z.2f} to "
        f"m^{m.high('exponent many: *'):z.2f}. With 10,000 points {m.mean('labels: lam 1'):,.0f} "
        f"hold rho at lam = 1 and {m.mean('labels: lam 10'):,.0f} at lam = 10, "
        f"{m.mean('share: lam 1'):.0%} and {m.mean('share: lam 10'):.0%} of one honest user's, to "
        f"{m.high('miss: *'):.0e}."
    ),
    measure=measure,
    draw=draw,
    success=SUCCESS,
    always=ALWAYS,
    setting=(
        "Logistic regression in 5 dimensions, 10 honest users of 10 to 10,000 points, squared l2, "
        "lam from 0.1 to 10; one query, repeated, at the equilibrium."
    ),
    paper=(
        Stated(
            what="data poisoning takes remarkably few data (lam = 1, as there)",
            where="Section 1, Section 5.3",
            claim=Claim("share: lam 1", at_most(FEW)),
            against=at_least(1.0),
            paper="2,000 points for 6,000 of each honest user",
            why="the paper's own share; the opposite: as many as an honest user's or more",
        ),
    ),
)
