"""CGA through data: in every round points whose gradient is the report that CGA would send."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isinf
from typing import NamedTuple

from torch import Tensor

from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.cga import CGAState, CounterGradient, counter_gradient
from pfl_flower.attacks.equivalence import model_from_gradient
from pfl_flower.attacks.poisoning.inverse import Inverse, Matched, Points
from pfl_flower.attacks.setup import AttackSetup
from pfl_flower.objective.plausible import Plausible
from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.objective.vectors import norm
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.seeding import generator

INNER = 0.9
"""Of GRAD's radius: of smooth l2 the model that reports it is 2 from rho, of 0.999 it is 22."""
HALF, SHORTENED = 0.5, 3
"""A wish is shortened while points say less than half of it along itself, so often at most."""


class MatchingState(NamedTuple):
    """CGA's memory, and the points of the last round.

    Attributes
    ----------
    rho, eta, eta_sum : Tensor
        As ``CGAState``.
    pixels, answers : Tensor
        As ``Points``.
    residual : Tensor
        By how much their gradient missed what CGA would have sent, a scalar.
    share : Tensor
        What the wish was shortened to, a fraction.
    """

    rho: Tensor
    eta: Tensor
    eta_sum: Tensor
    pixels: Tensor
    answers: Tensor
    residual: Tensor
    share: Tensor


class Cost(NamedTuple):
    """What fabricated data cost, and how near they come: points, label weight, residual."""

    points: int
    labels: float
    residual: float


@dataclass(frozen=True, kw_only=True)
class GradientMatching:
    """Report the gradient of points within [0, 1] that were made to have CGA's.

    With g CGA's report, projected on what is plausible, theta is the model at which an honest user
    would report it, ``grad_rho R(rho_t, theta) = g``; rho_t itself where R has a kink, or where
    reports are gradients of L_n. The points D are searched for so that ``grad L(theta, D) = g``,
    which makes theta a stationary point of the user's local problem on D. What is reported is
    ``grad L(theta, D)``: of points that miss g by r, a report that misses it by r. (With a convex L
    an honest solver on D misses by less: under squared l2 by ``2 lam (H + 2 lam)^{-1} r``.) CGA
    knows in the next round what was reported, and makes up for it. The method is of Bouaziz,
    El-Mhamdi, Usunier 2024 (arXiv 2410.21453), whose users report gradients at rho.

    No more can be said than so many points of bounded gradients say. Of a longer g less is wished
    for, nearer to what points say along it; the residual is what all of g is missed by.

    Parameters
    ----------
    wish : CounterGradient
        What the report is to be.
    plausible : Plausible
        What a report may be.
    regularizer : Regularizer or None
        R, where reports are its gradients at other models than rho.
    inverse : Inverse
        The search for points.
    points : int
        How many.
    pace : float
        Share s of the way to the target that a round's wish goes: ``s (rho_t - target)/eta_t -
        ghat``, of which CGA's is that with s = 1. The longer g, the more points it takes.
    own : Tensor
        Features ``(m, q)`` from which the first points start, where they are in [0, 1].
    purpose : tuple
        Seed and user of the draws.
    """

    wish: CounterGradient
    plausible: Plausible
    regularizer: Regularizer | None
    inverse: Inverse
    points: int
    pace: float
    own: Tensor
    purpose: tuple[int, int]

    def init(self, rho: Tensor) -> MatchingState:
        """Return the state of an attacker who has seen nothing and made no points."""
        free = self.inverse.model.inputs - int(self.inverse.bias)
        pixels = rho.new_zeros((self.points, free))
        answers = rho.new_zeros((self.points, self.inverse.model.outputs))
        nothing = rho.new_zeros(())
        return MatchingState(*self.wish.init(rho), pixels, answers, nothing, nothing)

    def update(
        self, state: MatchingState, observation: Observation
    ) -> tuple[Tensor, MatchingState]:
        """Return the gradient ``(d,)`` of this round's points, and the state with the points."""
        near = observation.rho - self.pace * (observation.rho - self.wish.target)
        wish = replace(self.wish, target=near)
        gradient, seen = wish.update(CGAState(*state[:3]), observation)
        asked = self.within(gradient)
        begun = None
        # eta is 0 before the first round alone.
        if float(state.eta):
            begun = Points(pixels=state.pixels, answers=state.answers)
        found, share = self.match(observation.rho, asked, begun)
        made, residual = found.points, norm(found.gradient - asked)
        said = found.gradient.new_tensor(share)
        return found.gradient, MatchingState(*seen, made.pixels, made.answers, residual, said)

    def match(self, rho: Tensor, asked: Tensor, begun: Points | None) -> tuple[Matched, float]:
        """Return points for a gradient ``(d,)``, and the share of it that they were made for."""
        share = 1.0
        for again in range(SHORTENED + 1):
            theta = self.stationary(rho, share * asked)
            if begun is None:
                draw = generator(self.purpose[0], "matching", self.purpose[1])
                begun = self.inverse.start(self.points, theta, draw, self.own)
            found = self.inverse.search(theta, share * asked, begun)
            length = float(asked @ asked)
            along = float(found.gradient @ asked) / length if length else share
            if again == SHORTENED or not 0 < along < HALF * share:
                break
            # Half way, of logarithms: what points say along a shorter wish is more of it.
            share, begun = (share * along) ** 0.5, found.points
        return found, share

    def within(self, gradient: Tensor) -> Tensor:
        """Return the plausible vector nearest to a gradient, or one of ``INNER`` of GRAD's radius.

        Smooth l2's sphere is attained by no model, and what is near it by none that is near rho.
        """
        found = self.plausible.project(gradient)
        if self.regularizer is None or isinf(self.plausible.radius):
            return found
        most = INNER * self.plausible.radius
        return found * (most / norm(found).clamp(min=most))

    def stationary(self, rho: Tensor, wished: Tensor) -> Tensor:
        """Return the model at which an honest user would report the gradient, ``(d,)``."""
        if self.regularizer is None:
            return rho
        return model_from_gradient(self.regularizer, rho, wished).value

    def cost(self, state: MatchingState) -> Cost:
        """Return what the points of a state come to."""
        labels = self.points * self.inverse.weight
        return Cost(self.points, labels, float(state.residual))


def gradient_matching(
    setup: AttackSetup,
    *,
    points: int = 200,
    weight: float = 1.0,
    sweeps: int = 3,
    steps: int = 100,
    pace: float = 0.1,
) -> GradientMatching:
    """Return the attack as the run configures it.

    Raises
    ------
    ConfigError
        If points of a mean are to weigh more than their share of it.
    """
    settings, mean = setup.settings, setup.settings.reduction == "mean"
    if mean and weight != 1:
        right = "weight = 1, with reduction = mean, in which all points weigh 1 together"
        raise ConfigError(f"attack-options = weight = {weight}: expected {right}")
    at_rho = settings.personalization != "joint" or setup.regularizer.kink > 0
    inverse = Inverse(
        model=setup.model,
        loss=setup.loss,
        nu=settings.nu,
        weight=1 / points if mean else weight,
        bias=setup.bias,
        steps=steps,
        sweeps=sweeps,
    )
    return GradientMatching(
        wish=counter_gradient(setup),
        plausible=setup.plausible,
        regularizer=None if at_rho else setup.regularizer,
        inverse=inverse,
        points=points,
        pace=pace,
        own=setup.held.features,
        purpose=(settings.seed, setup.user),
    )
