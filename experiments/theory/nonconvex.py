"""Beyond convexity: what of a gradient attack can data do to a network (arXiv 2410.21453).

Claim of Bouaziz, El-Mhamdi and Usunier: points within [0, 1] can be found whose gradient is about
the one that a Byzantine user would send, for networks too. Theorem 1 is of convex losses. Measured
on digits with the convolutional network of the laboratory (``model = cnn``, four channels, d =
754), four honest users of 100 points and one attacker, reports that are gradients of L_n at rho
(``personalization = classical``), a target learned from rho's own start on labels moved by one:

* *places*: CGA's wish for a tenth of the way, at rho's start, at honestly trained rho and at the
  target, and what the labels of the attacker's 100 images, of weight 1 to 10^6, make of it, by
  relative residual and cosine (all honest users' points weigh 400); with weight 100 the images move
  too. The same for a linear softmax, and for the network under squared l2, lam = 1, where points
  speak at ``theta = rho - g/(2 lam)``. A weight is a length: w times the weight is a wish of 1/w;
* *rounds*: CGA as reports, and as labels of weight 100 that are made anew each round;
* *held*: points of weight 100 made once, at the target, to cancel the honest gradients there, with
  which an honest user descends with all others: from the target, and from the honestly trained rho.

Predicted: a *short* wish is met where the images' Jacobians span it, for p_i is inside the simplex;
100 images of ten classes span 900 dimensions at most, of d = 650 and 754. How short, and what of
CGA's wish is in the span, no theorem says. At the target the wish is minus a sum of gradients of
other images. A linear softmax stands beside the network to tell what is the images' limit.

In each round rho moves by ``-eta sum g`` with eta = 2e-4. The points that stay weigh so much that
they need smaller steps: ``1/(largest curvature)`` of the sum, estimated where they were made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.studies.study import Setting
from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.cga import CGAState, CounterGradient
from pfl_flower.attacks.gradient_matching import GradientMatching
from pfl_flower.attacks.poisoning.inverse import Inverse, Matched, Points
from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import Softmax
from pfl_flower.objective.models import accuracy
from pfl_flower.objective.vectors import norm
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.solvers.optimizer_steps import StepState, adam_step

NAME = "equivalence-nonconvex"
USERS, POINTS, ETA, PACE, LAM = 4, 100, 2e-4, 0.1, 1.0
WEIGHTS, HEAVY = (1.0, 1e2, 1e4, 1e6), 1e2
ROUNDS, QUICK_ROUNDS = 20, 6
HELD, QUICK_HELD = 100, 20
"""Steps with points that stay."""
LEARNED, RATE = 150, 0.01
"""Adam's steps to a trained rho and to the target."""
KEYS = {
    "dataset": "digits",
    "personalization": "classical",
    "users": USERS + 1,
    "strategic-users": str(USERS),
    "points-per-user": str(POINTS),
    "nu": 0.0,
    "server-lr": ETA,
    "max-gradient-norm": 0.0,
}
MODELS = {
    "network": {"model": "cnn", "model-options": '{"channels": 4}', "local-solver": "adam"},
    "linear": {"model": "linear"},
}


@dataclass(frozen=True)
class World:
    """Honest users, a start, a trained rho, a target, and the attacker."""

    problem: Problem
    honest: LocalLoss
    start: Tensor
    trained: Tensor
    target: Tensor
    attack: GradientMatching

    @classmethod
    def draw(cls, setting: Setting, model: str) -> World:
        """Draw a seed's users, and learn both models from one start."""
        problem = build_problem(parse_config({**KEYS, **MODELS[model], "seed": setting.seed}))
        users = problem.datasets(tuple(range(USERS)))
        features = torch.stack([user.features for user in users]).double()
        labels = torch.stack([user.labels for user in users])
        honest = LocalLoss.build(problem.model, Softmax(), features, labels)
        start = problem.initial.double()
        known = problem.source.training_set()
        target = learned(problem, start, known[0].double(), problem.relabelled(known[1], 1))
        trained = learned(problem, start, features.flatten(0, 1), labels.flatten())
        (own,) = problem.datasets((USERS,))
        attack = GradientMatching(
            wish=CounterGradient(target=target),
            plausible=problem.plausible,
            regularizer=None,
            inverse=Inverse(model=problem.model, loss=Softmax(), weight=HEAVY, bias=True, sweeps=1),
            points=POINTS,
            pace=PACE,
            own=own.features.double(),
            purpose=(setting.seed, USERS),
        )
        return cls(problem, honest, start, trained, target, attack)

    def pull(self, rho: Tensor) -> Tensor:
        """Return the sum of the honest gradients at rho, ``(d,)``."""
        return self.honest.gradient(rho.expand(USERS, -1)).sum(dim=0)

    def left(self, rho: Tensor) -> float:
        """Return what is left of the way from the start to the target."""
        return float(norm(rho - self.target) / norm(self.start - self.target))

    def answers(self, rho: Tensor) -> tuple[float, float]:
        """Return the shares of test points answered rightly, and as the attacker likes."""
        tests = self.problem.test_set
        scores = self.problem.model.scores(rho[None], tests.features.double()[None])
        wanted = self.problem.relabelled(tests.labels, 1)
        return float(accuracy(scores, tests.labels)), float(accuracy(scores, wanted))

    def points_for(self, theta: Tensor, wished: Tensor, weight: float, sweeps: int) -> Matched:
        """Return so heavy points for a gradient at theta."""
        inverse = replace(self.attack.inverse, weight=weight, sweeps=sweeps)
        draw = torch.Generator().manual_seed(self.attack.purpose[0])
        begun = inverse.start(POINTS, theta, draw, self.attack.own)
        return inverse.search(theta, wished, begun)


def learned(problem: Problem, start: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Return what Adam learns of points from a start, ``(d,)``."""
    loss = LocalLoss.build(problem.model, Softmax(), features[None], labels[None], reduction="mean")
    theta, state = start[None], StepState.init(start[None])
    for _ in range(LEARNED):
        theta, state = adam_step(theta, loss.gradient(theta), state, RATE)
    return theta[0]


def places(world: World, setting: Setting, model: str) -> dict[str, float]:
    """Return relative residuals and cosines of points for CGA's wish, by place and weight."""
    found: dict[str, float] = {}
    for name, rho in (
        ("start", world.start),
        ("trained", world.trained),
        ("target", world.target),
    ):
        wished = PACE * (rho - world.target) / ETA - world.pull(rho)
        for weight in WEIGHTS:
            setting.say(f"{model}, {name}, weight {weight:g}")
            one = world.points_for(rho, wished, weight, 1)
            found |= quality(one, wished, f"{model}, {name}, {weight:g}")
        if model == "network":
            one = world.points_for(rho, wished, HEAVY, 3)
            found |= quality(one, wished, f"moved, {name}, {HEAVY:g}")
    return found


def tied(world: World, setting: Setting) -> dict[str, float]:
    """Return the same under squared l2 at the start: points speak where a user's model would be."""
    step = 1 / (6 * LAM * (USERS + 1))
    wished = PACE * (world.start - world.target) / step
    theta = world.start - wished / (2 * LAM)
    found: dict[str, float] = {}
    for weight in WEIGHTS:
        one = world.points_for(theta, wished, weight, 1)
        found |= quality(one, wished, f"squared l2, start, {weight:g}")
    return found


def quality(found: Matched, wished: Tensor, key: str) -> dict[str, float]:
    """Return the relative residual and the cosine of a match, recomputed from its gradient."""
    length = norm(wished)
    sent = found.gradient
    cosine = float(sent @ wished / (length * norm(sent)).clamp(min=1e-300))
    return {
        f"residual: {key}": float(norm(sent - wished) / length),
        f"cosine: {key}": cosine,
    }


def rounds(world: World, setting: Setting, matched: bool) -> dict[str, list[float]]:
    """Return by round what is left of the way, accuracies, and the relative residual."""
    rho, accepted, eta_sum = world.start, torch.zeros_like(world.start), 0.0
    state: Any = world.attack.init(rho) if matched else world.attack.wish.init(rho)
    curves: dict[str, list[float]] = {"left": [], "true": [], "wanted": [], "residual": []}
    for number in range(1, (QUICK_ROUNDS if setting.quick else ROUNDS) + 1):
        setting.say(f"round {number}, {'data' if matched else 'reports'}")
        seen = Observation(round=number, rho=rho, eta=ETA, eta_sum=eta_sum, accepted=accepted)
        near = replace(world.attack.wish, target=rho - PACE * (rho - world.target))
        wished, after = near.update(CGAState(*state[:3]), seen)
        report, state = world.attack.update(state, seen) if matched else (wished, after)
        missed = float(norm(report - wished) / norm(wished))
        report = torch.zeros_like(report) if setting.control else report
        rho = rho - ETA * (world.pull(rho) + report)
        accepted, eta_sum = report, eta_sum + ETA
        true, wanted = world.answers(rho)
        for name, value in (
            ("left", world.left(rho)),
            ("true", true),
            ("wanted", wanted),
            ("residual", missed),
        ):
            curves[name].append(value)
    return curves


def held(world: World, setting: Setting) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return where honest users and one with points that stay go, from the target and elsewhere."""
    wished = -world.pull(world.target)
    setting.say("points that stay")
    made = world.points_for(world.target, wished, HEAVY, 3)
    inverse = world.attack.inverse
    step = 1 / curvature(world, inverse, made.points)
    metrics = quality(made, wished, "held, target")
    metrics["step"] = step
    curves = {}
    for name, rho in (("target", world.target), ("trained", world.trained)):
        way = [world.left(rho)]
        for number in range(QUICK_HELD if setting.quick else HELD):
            told = torch.zeros_like(rho)
            if not setting.control:
                told = inverse.gradient(rho, made.points).detach()
            rho = rho - step * (world.pull(rho) + told)
            if number % 10 == 9:
                way.append(world.left(rho))
        curves[name] = way
        true, wanted = world.answers(rho)
        metrics |= {
            f"held from {name}: left": way[-1],
            f"held from {name}: true": true,
            f"held from {name}: wanted": wanted,
        }
    return metrics, curves


def curvature(world: World, inverse: Inverse, points: Points) -> float:
    """Return the largest curvature of all users' loss at the target, by products with it."""

    def slope(rho: Tensor) -> Tensor:
        return world.pull(rho) + inverse.gradient(rho, points).detach()

    return _largest(slope, world.target)


def _largest(slope: Callable[[Tensor], Tensor], rho: Tensor) -> float:
    here, direction, size = slope(rho), torch.ones_like(rho), 1.0
    for _ in range(20):
        direction = direction / norm(direction)
        moved = (slope(rho + 1e-5 * direction) - here) / 1e-5
        size, direction = float(norm(moved)), moved
    return size


def measure(setting: Setting) -> dict[str, Any]:
    """Match at places, then round by round, then once."""
    linear, network = World.draw(setting, "linear"), World.draw(setting, "network")
    metrics = {**places(linear, setting, "linear"), **places(network, setting, "network")}
    metrics |= tied(network, setting)
    curves = {"reports": rounds(network, setting, False), "data": rounds(network, setting, True)}
    found, stays = held(network, setting)
    metrics |= found
    for who, curve in curves.items():
        metrics |= {f"{who}: {what}": values[-1] for what, values in curve.items()}
    for name, rho in (("trained", network.trained), ("target", network.target)):
        true, wanted = network.answers(rho)
        metrics |= {f"{name}: true": true, f"{name}: wanted": wanted}
    return {"metrics": metrics, "curves": curves, "held": stays}
