"""What a poisoned dataset costs, and what it is worth by two yardsticks.

*Equilibrium*: the exact minimiser of LOSS with the poisoned user, which depends on its data alone.
*Transient*: rho after T rounds of the paper's protocol, in which local models take one Adam step a
round and the poisoned user's starts at theta_spade plus noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.poisoning_budget.scenes import Scene
from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData, gaussian_queries
from pfl_flower.attacks.poisoning.indifference import indifference
from pfl_flower.attacks.poisoning.matching import matching
from pfl_flower.attacks.poisoning.repeated import least_weight, repeated
from pfl_flower.attacks.poisoning.sampling import sampling
from pfl_flower.support.seeding import generator

ROUNDS = 250
QUERIES, NOISE = 2000, 0.01
"""The paper's number of indifferent queries, and the deviation of the noise on them."""
NOTHING = 1e-12
"""Weight of a label that says nothing."""


def _sampled(scene: Scene, labels: float) -> tuple[Aim, PoisonedData]:
    aim, draw = scene.goal, generator(scene.seed, "budget", scene.name, "sampling")
    queries = gaussian_queries(aim, int(labels), generator=draw)
    return aim, sampling(aim, queries, generator=draw)


def _indifferent(scene: Scene, labels: float) -> tuple[Aim, PoisonedData]:
    """Ask 2,000 queries at most, with soft labels of the weight that makes up the budget."""
    aim, draw = scene.goal, generator(scene.seed, "budget", scene.name, "indifference")
    count = min(int(labels), QUERIES)
    queries = gaussian_queries(aim, count, generator=draw)
    weight = labels / count
    return aim, indifference(aim, queries, generator=draw, noise=NOISE, weight=weight)


def _matched(scene: Scene, share: float) -> tuple[Aim, PoisonedData]:
    draw = generator(scene.seed, "budget", scene.name, "matching")
    aim = scene.goal if share == 1 else scene.aim(share)
    return aim, matching(aim, generator=draw, gap=scene.gap)


def _repeated(scene: Scene, share: float) -> tuple[Aim, PoisonedData]:
    aim = scene.goal if share == 1 else scene.aim(share)
    return aim, repeated(aim)


EXACT = "matching", "repeated"
METHODS: Mapping[str, Callable[[Scene, float], tuple[Aim, PoisonedData]]] = {
    "sampling": _sampled,
    "indifference": _indifferent,
    "matching": _matched,
    "repeated": _repeated,
}
"""From a number of labels, or for ``EXACT`` methods from the share of the way, to aim and data."""


@dataclass(frozen=True)
class Trial:
    """A scene in which datasets are played.

    Attributes
    ----------
    scene : Scene
        The game.
    honest : Tensor
        rho after ``ROUNDS`` rounds without the strategic user, ``(d,)``.
    """

    scene: Scene
    honest: Tensor

    @classmethod
    def of(cls, scene: Scene) -> Trial:
        """Run the honest users alone."""
        return cls(scene, scene.transient(ROUNDS, scene.goal, None))

    def settled(self, rho: Tensor) -> float:
        """``1 - ||rho - target|| / ||rho*_honest - target||``."""
        return self._share(rho, self.scene.centre)

    def moved(self, aim: Aim, data: PoisonedData, *, informed: bool = True) -> float:
        """``1 - ||rho_T - target|| / ||honest rho_T - target||``, the same rounds without s."""
        rho = self.scene.transient(ROUNDS, aim, data, informed=informed)
        return self._share(rho, self.honest)

    def _share(self, rho: Tensor, honest: Tensor) -> float:
        target = self.scene.target
        missed = torch.linalg.vector_norm(rho - target) / torch.linalg.vector_norm(honest - target)
        return 1 - float(missed)

    def play(self, method: str, amount: float) -> dict[str, float]:
        """Return what one dataset costs and what it achieves."""
        aim, data = METHODS[method](self.scene, amount)
        held = self.scene.held(aim)
        cold = not self.scene.warm or (method in EXACT and amount == 1)
        rho, residual = self.scene.settle(data, None if cold else held)
        miss = torch.linalg.vector_norm(rho - held) / (1 + torch.linalg.vector_norm(held))
        return {
            "labels": data.total_weight,
            "bound": least_weight(aim),
            "feasible": float(data.feasible),
            "residual": residual,
            "miss": float(miss),
            "equilibrium": self.settled(rho),
            "transient": self.moved(aim, data),
        }

    def starts(self) -> dict[str, float]:
        """Return the transient of theta_spade's start without labels, and of labels without it."""
        aim, data = METHODS["indifference"](self.scene, QUERIES)
        return {
            "start alone": self.moved(aim, replace(data, weights=NOTHING * data.weights)),
            "labels alone": self.moved(aim, data, informed=False),
        }

    def left(self, rounds: int) -> float:
        """Return what many rounds leave of the transient's excess over the equilibrium."""
        aim, data = METHODS["indifference"](self.scene, QUERIES)
        end = self.settled(self.scene.settle(data)[0])
        after, before = (
            self.settled(self.scene.transient(count, aim, data)) - end for count in (rounds, ROUNDS)
        )
        return after / before


def bound_by_hand(scene: Scene) -> float:
    """Return the binary bound from its formula, with ``max_t t sigma(-t)`` found on a grid."""
    spade = scene.goal.attack_model
    pull = 2 * scene.coupling.lam * (spade - scene.target) @ spade
    grid = torch.linspace(0, 5, 500_001, dtype=torch.float64)
    best = (grid * torch.sigmoid(-grid)).max()
    return float((pull + 2 * scene.nu * spade @ spade) / best)


def compare(points: Mapping[str, Mapping[float, Mapping[str, float]]]) -> dict[str, float]:
    """Return the metrics of a scene's points, by method and amount."""
    every = [point for curve in points.values() for point in curve.values()]
    cheap = [point for point in every if point["labels"] < point["bound"] * (1 - 1e-9)]
    random, paper = points["sampling"][QUERIES], points["indifference"][QUERIES]
    found = {
        "bound": points["matching"][1]["bound"],
        "below bound": len(cheap),
        "below bound feasible": sum(point["feasible"] for point in cheap),
        "residual": max(point["residual"] for point in every),
        "excess": paper["transient"] - paper["equilibrium"],
        "random over indifferent": random["equilibrium"] - paper["equilibrium"],
    }
    for method, amount in (("sampling", QUERIES), ("indifference", QUERIES), ("matching", 1)):
        for yardstick in ("equilibrium", "transient"):
            found[f"{method} {yardstick}"] = points[method][amount][yardstick]
    for method in EXACT:
        if method in points:
            found[f"{method} miss"] = points[method][1]["miss"]
            found[f"{method} over bound"] = points[method][1]["labels"] / found["bound"] - 1
    return found
