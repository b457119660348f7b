"""Proposition 3: ``theta_spade = target - g_inf/(2 lam)`` holds squared l2 at the target.

The gradient of LOSS in rho vanishes at the target when theta_spade is there, and the target is then
rho*(theta_spade). g_inf has two sources: CGA's last gradient, and minus the honest users' exact
responses at the target, which need their losses but no run. With exact local solves both are the
same; the paper's experiments take one Adam step a round, and CGA, which cancels whatever is sent,
then stands at the target long before the local models have arrived.

Measured, seeds 1-5, three honest users, target 1.5 to 2.7 from rho*_honest: with exact solves the
two theta_spade differ by at most 8e-12 and hold rho within 5e-12 of the target. After 250 rounds of
single steps CGA is within 2e-8 to 1e-3 of the target, but its last gradient gives a theta_spade
that is off by 3e-6 to 3.2 (least squares, median 0.02) and 0.05 to 0.8 (logistic, median 0.16) and
whose equilibrium misses the target by 1e-6 to 1.8 and 0.03 to 0.6: up to two thirds of the whole
way. Over the same 250 rounds that does not show: the misled model is nearer to the target than the
right one in five of the ten runs, being made for local models that lag as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.studies.drawing import legend_above
from experiments.studies.standing import Stated, titled
from experiments.studies.study import Result, Setting, Study
from experiments.theory.attacks_compared import counter_gradient, few_honest_users
from experiments.theory.gradient_descent import Descent, descend, envelope_smoothness
from experiments.theory.scenario import Scenario
from pfl_flower.aggregation.server_steps import StepSizes
from pfl_flower.attacks.attack import Attack
from pfl_flower.attacks.equivalence import honest_sum, model_from_gradient
from pfl_flower.attacks.model import ModelAttack
from pfl_flower.run.checks import Claim, at_least, at_most
from pfl_flower.run.figures import PALETTE, save
from pfl_flower.solvers.optimizer_steps import StepState, adam_step
from pfl_flower.solvers.population import Population
from pfl_flower.solvers.proximal import Solution

LOSSES = "least-squares", "logistic"
ROUNDS, LONG, QUICK_LONG = 250, 1500, 250
"""Rounds of the paper's experiments, and for how long the model attacks are followed."""
LOCAL_STEPS = StepSizes(first=0.02, decay=0.99, floor=0.005)
"""Step sizes of the local models, as in the paper's experiments."""
EXACT = 1e-6
"""Equal, but for equilibria and a descent that end at small residuals and steps."""


class SingleSteps(Population):
    """Users who take one Adam step on ``L_n + R(rho_t, .)`` in place of an exact solve."""

    state: StepState | None = None
    rounds: int = 0

    def solve(self, rho: Tensor, start: Tensor) -> Solution:
        """Return the local models ``(k, d)`` one step from ``start``; once a round."""
        state = self.state or StepState.init(start)
        self.rounds += 1
        gradient = self.gradient(start) - self.regularizer.grad_rho(rho, start)
        theta, self.state = adam_step(start, gradient, state, LOCAL_STEPS.at(self.rounds))
        left = self.gradient(theta) - self.regularizer.grad_rho(rho, theta)
        residual = torch.linalg.vector_norm(left, dim=1)
        steps = torch.ones(self.size, dtype=torch.int64)
        return Solution(theta, residual, steps, residual <= self.tolerance)


def single_steps(scenario: Scenario, attack: Attack[Any], rounds: int) -> Descent:
    """Run an attack, or nothing in the control, on honest users who take single steps."""
    users = scenario.population(kind=SingleSteps)
    eta, start = 1 / (3 * envelope_smoothness(users)), torch.zeros_like(scenario.target)
    return descend(users, [] if scenario.idle else [attack], eta=eta, rounds=rounds, start=start)


def measure(setting: Setting) -> dict[str, Any]:
    """Return what theta_spade from either source is worth, under exact and under single steps."""
    metrics: dict[str, float] = {}
    curves: dict[str, dict[str, list[float]]] = {}
    for loss in LOSSES:
        setting.say(loss)
        scenario = few_honest_users(setting, loss, "squared-l2")
        found, curves[loss] = _compare(scenario, QUICK_LONG if setting.quick else LONG)
        metrics |= {f"{what}: {loss}": value for what, value in found.items()}
    return {"metrics": metrics, "curves": curves}


def _compare(scenario: Scenario, rounds: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    exact = counter_gradient(scenario)
    stepped = single_steps(scenario, scenario.counter_gradient(), ROUNDS)
    coupling, target = scenario.regularizer, scenario.target
    others = honest_sum(scenario.honest, target).value
    wanted = {
        "cga": exact.reports[-1].sum(dim=0),
        "responses": -others,
        "stepped": stepped.reports[-1].sum(dim=0),
    }
    models = {
        source: model_from_gradient(coupling, target, gradient).value
        for source, gradient in wanted.items()
    }
    found = {
        "honest distance": scenario.away,
        "CGA, single steps": _norm(stepped.limit - target),
    }
    curves = {"cga": _distances(stepped, target)}
    for source, model in models.items():
        pull = torch.zeros_like(target) if scenario.idle else coupling.grad_rho(target, model)
        found |= {
            f"gradient, {source}": _norm(others + pull) / _norm(others),
            f"equilibrium, {source}": _norm(scenario.attempt(model=model).rho - target),
            f"gap, {source}": _norm(model - models["responses"]),
        }
        if source != "cga":
            attack = ModelAttack(attack_model=model, regularizer=coupling)
            curves[source] = _distances(single_steps(scenario, attack, rounds), target)
            found[f"single steps, {source}"] = curves[source][ROUNDS]
    return found, curves


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))


def _distances(descent: Descent, target: Tensor) -> list[float]:
    distances: list[float] = torch.linalg.vector_norm(descent.rho - target, dim=1).tolist()
    return distances


SOURCES = {"cga": "CGA's last gradient", "responses": "exact responses"}
SUCCESS = (
    *(
        Claim(
            f"gradient, {source}",
            at_most(EXACT),
            f"relative gradient at the target, theta_spade from {text}",
        )
        for source, text in SOURCES.items()
    ),
    *(
        Claim(
            f"equilibrium, {source}",
            at_most(EXACT),
            f"distance of rho*(theta_spade), theta_spade from {text}",
        )
        for source, text in SOURCES.items()
    ),
    Claim("gap, cga", at_most(EXACT), "distance between theta_spade from the two sources"),
)
"""What is measured with exact solves, on both losses: 0 up to rounding."""


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw the distance to the target by round, for theta_spade from either source."""
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = {
        "cga": "CGA",
        "stepped": "model attack from CGA's last gradient",
        "responses": "model attack from exact responses",
    }
    for axes, loss in zip(panels, LOSSES, strict=True):
        for colour, (source, label) in zip(PALETTE, labels.items(), strict=False):
            values = np.array([result["curves"][loss][source] for result in results])
            axes.plot(values.T, color=colour, alpha=0.4, linewidth=0.6)
            axes.plot(np.median(values, axis=0), color=colour, linewidth=1.8, label=label)
            if source != "cga":
                worth = [result["metrics"][f"equilibrium, {source}: {loss}"] for result in results]
                axes.axhline(float(np.median(worth)), linestyle="--", color=colour, linewidth=1.2)
        axes.axvline(ROUNDS, linestyle=":", color="black", linewidth=0.8)
        axes.set(title=loss, xlabel="round of single local steps", yscale="log", ylim=(1e-15, 10))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(r"$\|\rho_t - \theta^\dagger\|$")
    panels[0].plot([], [], "--", color="grey", label="at its exact equilibrium")
    legend_above(figure, panels[0], 2)
    save(figure, folder, "prop3-model-attack")


def _way_left(metrics: Mapping[str, float]) -> float:
    """Return how much of the way to the target is left, on the loss that has most of it left."""
    stepped, honest = "equilibrium, stepped", "honest distance"
    return max(metrics[f"{stepped}: {loss}"] / metrics[f"{honest}: {loss}"] for loss in LOSSES)


PAPER = (
    Stated(
        what="LOSS's gradient in rho vanishes at the target under the model attack",
        where="Proposition 3",
        claim=titled(
            SUCCESS, "relative gradient at the target, theta_spade from CGA's last gradient"
        ),
        why="proved: equal but for the rounding of exact solves",
    ),
    Stated(
        what="after 250 rounds of single steps CGA's last gradient makes the target the minimiser",
        where="Section 5.2, whose experiment does so",
        claim=Claim(_way_left, at_most(EXACT), "way left at the equilibrium"),
        against=at_least(1),
        paper="0",
        value=0.0,
        why="as Proposition 3's, over the way without an attack; the opposite: all of that is left",
    ),
)
STUDY = Study(
    name="prop3-model-attack",
    claim=(
        "Under squared l2 a model attack with theta_spade = target - g_inf/(2 lam) "
        "holds rho at the target."
    ),
    words=lambda m: (
        f"With exact local solves rho* is at most "
        f"{m.high('equilibrium, cga: *', 'equilibrium, responses: *'):.0e} from the target, with "
        f"theta_spade from single local steps, as in the paper's experiments, up to "
        f"{m.high('equilibrium, stepped: *'):.2g}; without an attack it is "
        f"{m.low('honest distance: *'):.2g} to {m.high('honest distance: *'):.2g} away."
    ),
    measure=measure,
    draw=draw,
    success=SUCCESS,
    paper=PAPER,
)
