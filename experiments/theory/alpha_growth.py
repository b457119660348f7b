"""How the weight of the paper's poisoned data must grow with the number of honest users.

DOC
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import brentq
from torch import Tensor

from experiments.study import Result, Setting, Study
from experiments.theory.games import Game, draw_game, far_target, honest_optimum, slope
from experiments.theory.joint import settle, stacked
from pfl_flower.attacks.data import Aim, PoisonedData, gaussian_queries, indifference
from pfl_flower.equilibrium import equilibrium
from pfl_flower.equivalence import honest_sum, model_from_gradient
from pfl_flower.figures import PALETTE, save
from pfl_flower.regularizers import SquaredL2
from pfl_flower.results import Check
from pfl_flower.seeding import generator

SIZES, QUICK_SIZES = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16)
SMALL, LARGE = NOISES = 0.01, 0.3
"""Deviations of indifference's noise: labels near 1/2 for every N, or for few users only."""
POINTS, LAM, NU = 100, 1.0, 0.01
SHARE = 0.1
"""Of a distance, that a model may miss what it should be."""
LEAST, MOST, STRIDE = 1.0, 1e8, 10.0
"""Weights that are tried, and the factor between them before the bisection."""
NOTHING = 1e-12
"""What a label counts in the control."""
CRITERIA = {
    "global": r"$\|\rho^* - \theta^\dagger\| \leq 0.1\,\|\theta^\dagger - \rho^*_{hon}\|$",
    "local": r"$\|\theta_s^* - \theta^\spadesuit\| \leq 0.1\,\|\theta^\spadesuit - \theta^\dagger\|$",
    "fixed": r"$\|\theta_s^* - \theta^\spadesuit\| \leq 0.1\,\|\theta^\dagger - \rho^*_{hon}\|$",
}


@dataclass(frozen=True, kw_only=True)
class Duel:
    """Honest users, a target far from their optimum, and indifferent data of any weight.

    Attributes
    ----------
    game : Game
        The N honest users.
    target : Tensor
        theta_dagger, ``(d,)``.
    away : float
        ``||target - rho*_honest||``.
    aim : Aim
        Of theta_spade, which holds rho at the target.
    noise, unit : float
        Of the data, and what one label counts.
    seen : dict
        By the weight's logarithm, misses in units of what each criterion allows (logarithms), and
        the equilibrium, ``(N + 2, d)``.
    """

    game: Game
    target: Tensor
    away: float
    aim: Aim
    noise: float = SMALL
    unit: float = 1.0
    seen: dict[float, tuple[list[float], Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, game: Game) -> Duel:
        """Place the target, and theta_spade by Proposition 3."""
        coupling = SquaredL2(lam=LAM)
        centre = honest_optimum(game, coupling)
        target = far_target(game, centre)
        pull = honest_sum(game.population(coupling), target).value
        spade = model_from_gradient(coupling, target, -pull).value
        away = float(torch.linalg.vector_norm(target - centre))
        return cls(game=game, target=target, away=away, aim=game.aim(coupling, target, spade))

    @property
    def reach(self) -> float:
        """``||theta_spade - target||``."""
        return float(torch.linalg.vector_norm(self.aim.attack_model - self.target))

    def data(self, weight: float) -> PoisonedData:
        """Return the paper's data, from the same draws for every N and weight."""
        draw = generator(self.game.seed, "alpha", "indifference")
        queries = gaussian_queries(self.aim, POINTS, generator=draw)
        return indifference(
            self.aim, queries, generator=draw, noise=self.noise, weight=self.unit * weight
        )

    def misses(self, rho: Tensor, theta: Tensor) -> list[float]:
        """Return how far rho and theta_s are off, in units of what each criterion allows."""
        off = float(torch.linalg.vector_norm(theta - self.aim.attack_model))
        missed = float(torch.linalg.vector_norm(rho - self.target))
        allowed = SHARE * self.away
        return [missed / allowed, off / (SHARE * self.reach), off / allowed]

    def at(self, logarithm: float) -> list[float]:
        """Return the misses' logarithms at weight ``exp(logarithm)``, at the equilibrium."""
        if logarithm not in self.seen:
            near = min(self.seen, key=lambda known: abs(known - logarithm), default=None)
            users = (*self.game.users, self.data(math.exp(logarithm)).user())
            start = self.target.expand(len(users) + 1, -1)
            start = start if near is None else self.seen[near][1]
            models = settle(self.game, users, LAM, start)
            missed = [math.log(miss) for miss in self.misses(models[0], models[-1])]
            self.seen[logarithm] = missed, models
        return self.seen[logarithm][0]

    def least(self, criterion: int) -> float | None:
        """Return the least weight that meets a criterion, to 0.1 %, or None within the limits."""
        low, most = math.log(LEAST), math.log(MOST)
        while self.at(low)[criterion] > 0:
            high = low + math.log(STRIDE)
            if high > most + 1e-9:
                return None
            if self.at(high)[criterion] <= 0:
                found = brentq(lambda x: self.at(x)[criterion], low, high, xtol=1e-3, rtol=1e-9)
                return math.exp(found)
            low = high
        return math.exp(low)

    def exact(self, weight: float) -> list[float]:
        """Return the misses by ``pfl_flower.equilibrium`` from a cold start."""
        population = self.game.population(SquaredL2(lam=LAM), self.data(weight).user())
        found = equilibrium(population)
        return self.misses(found.rho, found.theta[-1])

    def curvature(self) -> float:
        """Return the curvature of the data at weight 1 along theta_spade, at theta_spade."""
        spade = self.aim.attack_model[None]
        local = stacked(self.game, [self.data(1.0).user()], nu=0.0)
        product = local.hessian_product(spade, spade)
        return float((product * spade).sum() / (spade * spade).sum())


def measure(setting: Setting) -> dict[str, Any]:
    """Return the least weights by N, their exponents, and what a quadratic predicts."""
    sizes = QUICK_SIZES if setting.quick else SIZES
    full = draw_game("logistic", seed=setting.seed, users=max(SIZES), points=40, dim=5, nu=NU)
    duels = [Duel.of(replace(full, users=full.users[:size])) for size in sizes]
    unit = NOTHING if setting.control else 1.0
    metrics: dict[str, float] = {}
    curves: dict[str, dict[str, list[float | None]]] = {}
    for noise in NOISES:
        setting.say(f"noise {noise}")
        tried = [replace(duel, noise=noise, unit=unit, seen={}) for duel in duels]
        curves[str(noise)] = _curves(tried)
        metrics |= _exponents(curves[str(noise)], sizes, f"noise {noise}")
    return {"metrics": metrics, "sizes": sizes, "curves": curves}


def _curves(duels: Sequence[Duel]) -> dict[str, list[float | None]]:
    curves: dict[str, list[float | None]] = {
        name: [duel.least(index) for duel in duels] for index, name in enumerate(CRITERIA)
    }
    # theta_s* = (alpha h theta_spade + 2 lam rho)/(alpha h + 2 lam) along theta_spade.
    curves["predicted"] = [2 * LAM * (1 / SHARE - 1) / duel.curvature() for duel in duels]
    curves["reach"] = [duel.reach for duel in duels]
    curves["exact"] = [
        None if weight is None else duel.exact(weight)[0]
        for duel, weight in zip(duels, curves["global"], strict=True)
    ]
    return curves


def _exponents(
    curves: dict[str, list[float | None]], sizes: Sequence[int], label: str
) -> dict[str, float]:
    """Return the exponents in N, over all N and over the last three, where all were found."""
    found: dict[str, float] = {}
    for name in CRITERIA:
        weights = [weight for weight in curves[name] if weight is not None]
        found[f"{label} found {name}"] = len(weights) / len(sizes)
        if len(weights) == len(sizes):
            found[f"{label} exponent {name}"] = slope(sizes, weights)
            found[f"{label} tail {name}"] = slope(sizes[-3:], weights[-3:])
    ratios = [
        abs(math.log(weight / predicted))
        for weight, predicted in zip(curves["local"], curves["predicted"], strict=True)
        if weight is not None and predicted is not None
    ]
    exact = [abs(miss - 1) for miss in curves["exact"] if miss is not None]
    if len(ratios) == len(exact) == len(sizes):
        found[f"{label} off prediction"] = math.exp(max(ratios))
        found[f"{label} off exact"] = max(exact)
    return found


def judge(results: Sequence[Result]) -> list[Check]:
    """Return which criterion grows like N, on the worst seed."""

    def check(name: str, key: str, low: float, high: float) -> Check:
        values = [float(result["metrics"].get(key, math.nan)) for result in results]
        passed = all(low <= value <= high for value in values)
        worst = max(values, key=lambda value: max(low - value, value - high))
        return Check(name, worst, f"in [{low:g}, {high:g}]", passed)

    checks = [
        check(f"noise {noise}: found, {name}", f"noise {noise} found {name}", 1, 1)
        for noise in NOISES
        for name in CRITERIA
    ]
    for name, low, high in (("global", -0.5, 0.5), ("local", -0.5, 0.5), ("fixed", 0.8, 1.6)):
        key = f"noise {SMALL} tail {name}"
        checks.append(check(f"noise {SMALL}: exponent, {name}", key, low, high))
    for name, low, high in (("global", 1.2, 3.5), ("local", 1.2, 3.5), ("fixed", 2.0, 4.5)):
        key = f"noise {LARGE} tail {name}"
        checks.append(check(f"noise {LARGE}: exponent, {name}", key, low, high))
    for noise in NOISES:
        key = f"noise {noise} off prediction"
        checks.append(check(f"noise {noise}: factor to the quadratic", key, 1, 1.5))
        key = f"noise {noise} off exact"
        checks.append(check(f"noise {noise}: miss at the exact equilibrium", key, 0, 0.01))
    return checks


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw the least weights against N: the mean over seeds, and their range."""
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for axes, noise in zip(panels, NOISES, strict=True):
        _panel(axes, results, str(noise))
    panels[0].set(ylabel=r"least weight $\alpha$ of a label")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    save(figure, folder, "alpha-grows-with-n")


def _panel(axes: Axes, results: Sequence[Result], noise: str) -> None:
    sizes = np.array(results[0]["sizes"], dtype=float)
    for colour, (name, label) in zip(PALETTE, [*CRITERIA.items(), ("predicted", "")], strict=False):
        rows = [[w or math.nan for w in result["curves"][noise][name]] for result in results]
        values = np.array(rows, dtype=float)
        mean = np.exp(np.log(values).mean(axis=0))
        if name == "predicted":
            axes.plot(sizes, mean, ":", color="black", label=r"predicted: $18\lambda/h$", zorder=3)
            continue
        axes.plot(sizes, mean, "o-", color=colour, label=label, markersize=4)
        axes.fill_between(
            sizes, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0
        )
    low, high = axes.get_ylim()
    guide = low * 2 * sizes
    axes.plot(sizes, guide, "--", color="grey", label=r"$\alpha \propto N$")
    axes.set(xscale="log", yscale="log", xlabel="honest users N", title=f"noise {noise}")
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


STUDY = Study(
    name="alpha-grows-with-n",
    title="Appendix I.2: what weight the indifference poisoning needs against N honest users",
    measure=measure,
    judge=judge,
    draw=draw,
    success=tuple(
        f"noise {noise}: {what}"
        for noise in NOISES
        for what in (
            *(f"{kind}, {name}" for kind in ("found", "exponent") for name in CRITERIA),
            "factor to the quadratic",
            "miss at the exact equilibrium",
        )
    ),
)
