"""Lemma 1: an equilibrium with a dataset is that of a model attack with its local model.

For every regulariser and both losses: with arbitrary data D_s, (rho*, theta*_-s) minimises LOSS_s
with theta_spade := theta_s*(D) too, and the strategic user's data no longer matter. Compared are
the equilibria of both problems, and LOSS_s there with that at random models around. Under l2 weak
data leave theta_s* at rho* exactly, the kink of R: a case of its own, with its own certificate.

Measured, seeds 1-5: rho and the honest local models agree to 4e-11, relative, under every
regulariser (2e-15 under squared l2, the same bits of rho at the kink), and none of 400 rivals is
lower. The figure moves theta_spade along the line through theta_s* and rho*_honest: in squared l2
rho* follows in proportion, or nearly so, in smooth l2 less the farther theta_spade is, and in l2
hardly at all until theta_spade is near rho, since only its direction matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.studies.drawing import legend_above, medians
from experiments.studies.standing import Stated
from experiments.studies.study import Result, Setting, Study
from experiments.theory.honest_users import draw_scenario
from experiments.theory.scenario import Scenario, relative, settled
from pfl_flower.attacks.equivalence import honest_sum
from pfl_flower.objective.table import REGULARIZERS
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.checks import Claim, at_least, at_most, exactly
from pfl_flower.run.figures import PALETTE, save
from pfl_flower.solvers.population import Population
from pfl_flower.support.seeding import generator

LOSSES = "least-squares", "logistic"
AT_KINK = "l2 at its kink"
CASES = {
    "squared-l2": ("squared-l2", 30, 2.0),
    "l2": ("l2", 30, 2.0),
    "smooth-l2": ("smooth-l2", 30, 2.0),
    AT_KINK: ("l2", 3, 0.1),
}
"""Regulariser, and the number and the scale of the strategic user's queries: few and short ones
pull with less than lam, so that theta_s* = rho* under l2."""
LAM = 4.0
EXACT, ROUNDED = 1e-8, 1e-12
"""Equilibria are solved to a residual of 1e-9 and LOSS_s is a sum of some hundred terms."""
APART = 0.01
"""What is not at the kink is off it by more than the solvers' rounding, by far."""
RIVALS, QUICK_RIVALS = 400, 100
SHIFTS = tuple(round(-1 + 0.2 * step, 1) for step in range(11))


def measure(setting: Setting) -> dict[str, Any]:
    """Compare both equilibria, and those of models around theta_s*."""
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    shifts = SHIFTS[::5] if setting.quick else SHIFTS
    for loss in LOSSES:
        for case in CASES:
            setting.say(f"{loss}, {case}")
            found, curves[f"{case}: {loss}"] = _compare(setting, loss, case, shifts)
            metrics |= {f"{what}, {case}: {loss}": value for what, value in found.items()}
    return {"metrics": metrics, "shifts": shifts, "curves": curves}


def arbitrary_data(scenario: Scenario, points: int, scale: float) -> UserData:
    """Return points that no model explains: normal queries, answers at random."""
    draw = generator(scenario.seed, "lemma1", scenario.loss, points)
    queries = scale * torch.randn((points, scenario.dim), generator=draw, dtype=torch.float64)
    answers = 4.0 * torch.randn(points, generator=draw, dtype=torch.float64)
    return UserData(queries, answers if scenario.loss == "least-squares" else answers.sign())


def held(population: Population, model: Tensor) -> tuple[Tensor, Tensor]:
    """Return rho*(theta_spade), ``(d,)``, and the honest local models.

    Where rho* coincides with theta_spade under l2, Newton's method has no certificate, but there
    is one: 0 is a subgradient at theta_spade if and only if the honest sum is in the ball. Where it
    is not, Newton's method can land on theta_spade and stick: it starts below that value.
    """
    kink, others = population.regularizer.kink, honest_sum(population, model).value
    if float(torch.linalg.vector_norm(others)) <= kink:
        return model, _local_models(population, model)
    found = settled(population, model, start=_below(population, model, others) if kink else None)
    return found.rho, found.theta


def _local_models(population: Population, rho: Tensor) -> Tensor:
    return population.solve(rho, rho.expand(population.size, -1)).theta


def _below(population: Population, model: Tensor, others: Tensor) -> Tensor:
    """Return a rho at which LOSS_s is less than at theta_spade, down the honest gradient."""

    def value(rho: Tensor) -> float:
        return modified_loss(population, rho, _local_models(population, rho), model)

    step, at_kink = others / torch.linalg.vector_norm(others), value(model)
    while not value(model - step) < at_kink:
        step = step / 2
    return model - step


def modified_loss(population: Population, rho: Tensor, theta: Tensor, model: Tensor) -> float:
    """Return LOSS_s (Equation 38): the strategic user's theta is theta_spade, its data are none."""
    coupling = population.regularizer
    local = population.value(theta) + coupling.value(rho, theta)
    return float(local.sum() + coupling.value(rho, model))


def _compare(
    setting: Setting, loss: str, case: str, shifts: Sequence[float]
) -> tuple[dict[str, float], list[float]]:
    name, points, scale = CASES[case]
    coupling = REGULARIZERS.load(name)(lam=LAM)
    scenario = draw_scenario(loss, coupling, seed=setting.seed, users=3, points=20, dim=4)
    honest, centre = scenario.honest, scenario.honest_optimum
    full = scenario.settle(arbitrary_data(scenario, points, scale))
    local, others = full.theta[-1], full.theta[:-1]
    model = centre if setting.control else local
    rho, theta = held(honest, model)
    found = {
        "rho": relative(rho, full.rho),
        "local models": relative(theta, others),
        "rival": _best_rival(setting, honest, full.rho, others, model),
        "apart": float(torch.linalg.vector_norm(local - full.rho)),
        "moved": float(torch.linalg.vector_norm(centre - full.rho)),
    }
    slid = [held(honest, model + shift * (centre - local))[0] for shift in shifts]
    curve = [float(torch.linalg.vector_norm(one - full.rho)) / found["moved"] for one in slid]
    return found, curve


def _best_rival(
    setting: Setting, population: Population, rho: Tensor, theta: Tensor, model: Tensor
) -> float:
    """Return by how much the best of random models around them lowers LOSS_s, relatively.

    Half of the rivals move all models together: that keeps them at the kink of l2.
    """
    draw = generator(setting.seed, "lemma1", "rivals")
    best = value = modified_loss(population, rho, theta, model)
    for rival in range(QUICK_RIVALS if setting.quick else RIVALS):
        moves = torch.randn((1 + len(theta), len(rho)), generator=draw, dtype=torch.float64)
        moves = moves[:1].expand(moves.shape) if rival % 2 else moves
        moves = 10 ** (-4 * torch.rand((), generator=draw, dtype=torch.float64)) * moves
        tried = modified_loss(population, rho + moves[0], theta + moves[1:], model)
        best = min(best, tried)
    return (value - best) / (1 + abs(value))


LABEL = r"$\theta_\spadesuit$, from $\theta_s^*(\mathcal{D})$ at 0 to $\rho^*_\mathrm{honest}$ at 1"
SUCCESS = tuple(
    Claim(f"{what}, {case}", at_most(limit), f"{case}: {what}")
    for case in CASES
    for what, limit in (("rho", EXACT), ("local models", EXACT), ("rival", ROUNDED))
)
ALWAYS = tuple(
    Claim(
        f"apart, {case}",
        exactly(0) if case == AT_KINK else at_least(APART),
        f"{case}: ||theta_s* - rho*||",
    )
    for case in CASES
)


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw how rho*(theta_spade) leaves rho*(D) as theta_spade leaves theta_s*."""
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    shifts = results[0]["shifts"]
    for axes, loss in zip(panels, LOSSES, strict=True):
        for colour, case in zip(PALETTE, CASES, strict=False):
            values = np.array([result["curves"][f"{case}: {loss}"] for result in results])
            style = "--" if case == AT_KINK else "-"
            medians(axes, shifts, values, style, colour=colour, label=case)
        axes.set(title=loss, xlabel=LABEL)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(r"$\|\rho^*(\theta_\spadesuit) - \rho^*(\mathcal{D})\|$, relative")
    legend_above(figure, panels[0], 4)
    save(figure, folder, "lemma1-reduction")


def _worst(metrics: Mapping[str, float], *, what: str) -> float:
    """Return the largest of a measure over all cases and losses."""
    return max(value for name, value in metrics.items() if name.startswith(f"{what}, "))


PAPER = tuple(
    Stated(
        what=f"{who} with the model that the data lead to is the one with the data",
        where="Lemma 1",
        claim=Claim(partial(_worst, what=what), at_most(EXACT), f"{what}, all cases"),
        why="proved: equal but for the solvers' rounding",
    )
    for what, who in (("rho", "rho*"), ("local models", "every theta_n*"))
)
STUDY = Study(
    name="lemma1-reduction",
    claim=(
        "Whatever the regulariser, data poisoning is a model attack with the model that "
        "the data lead to."
    ),
    words=lambda m: (
        f"Both attacks give the same rho to {m.high('rho, *'):.0e} and the same honest models to "
        f"{m.high('local models, *'):.0e}, relative; no random rival lowers the loss by more than "
        f"{m.high('rival, *'):.1g}."
    ),
    measure=measure,
    draw=draw,
    success=SUCCESS,
    paper=PAPER,
    always=ALWAYS,
)
