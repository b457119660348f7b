"""A regulariser of one's own is what it says: its parts agree, and give what a run asks of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pfl_flower.attacks.poisoning.table import POISONINGS
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.objective.plausible import EDGE
from pfl_flower.objective.table import REGULARIZERS
from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import Problem
from pfl_flower.run.step_sizes import server_step_sizes
from pfl_flower.run.tried import Tried, made_up
from pfl_flower.support.errors import ConfigError

LENGTHS = (0.0941, 0.377, 1.83)
"""Distances ``||rho - theta||``, odd enough to be nobody's kink."""
FARTHER = (43.7, 1e3)
"""Distances at which one that grows fast may be infinite."""
NUDGE = 1e-5
"""Of the difference quotient, relative to the length: both its errors are then about 1e-10."""
AGREEMENT = 1e-3
"""Of the profile's difference quotient and the slope: far above their errors, far below a factor
that somebody forgot."""
ROUNDED = 1e-9
"""Rounding of a difference quotient, relative to the profile over r: a hundred units over NUDGE."""
INVERTED = 1e-6
"""Of a slope and that at its inverse: what a root found by iteration keeps of its digits."""


def try_regularizer(problem: Problem) -> None:
    """Try a regulariser of one's own.

    Raises
    ------
    ConfigError
        If a part of it raises, is not finite or of the wrong shape; if ``weight`` is not the
        profile's slope over r, or a gradient lies outside its own GRAD; if an attack needs the
        model that reports a gradient, and ``inverse_slope`` does not give it.
    """
    config, regularizer = problem.config, problem.regularizer
    tried = Tried(REGULARIZERS.point, config.regularizer)
    if REGULARIZERS.row(config.regularizer) is REGULARIZERS.own:
        with tried.working("a radius and a kink"):
            radius, kink = float(regularizer.radius), float(regularizer.kink)
        if not radius > 0 or not 0 <= kink <= radius:
            raise tried.refusal(f"0 <= kink <= radius > 0, and they are {kink:g} and {radius:g}")
        _try_vectors(problem, tried)
        _try_slope(problem, tried)
        if needs_models(config):
            try_inverse(problem)


def needs_models(config: RunConfig) -> bool:
    """Return whether the run's attack pretends to hold a model, which gradients are turned into."""
    told_by = ATTACKS.row(config.attack).told_by
    return bool(config.strategic()) and told_by in ("attack-model", POISONINGS.point)


def _try_vectors(problem: Problem, tried: Tried) -> None:
    """Try all that takes parameter vectors, as the solvers and the server do."""
    regularizer, dim = problem.regularizer, problem.model.dim
    rho = made_up(problem, dim, words=("rho",))
    away = made_up(problem, len(LENGTHS), dim, words=("theta",))
    lengths = torch.tensor(LENGTHS).to(rho)
    theta = rho - lengths[:, None] * away / torch.linalg.vector_norm(away, dim=1, keepdim=True)
    several = tuple(theta.shape)
    with tried.working("a value"):
        value = regularizer.value(rho, theta)
    tried.tensor("a value", value, several[:1], rho)
    with tried.working("a gradient"):
        gradient = regularizer.grad_rho(rho, theta)
    tried.tensor("a gradient", gradient, several, rho)
    with tried.working("a second derivative"):
        curved = regularizer.hessian_product(rho, theta, away)
    tried.tensor("a second derivative", curved, several, rho)
    with tried.working("a gradient at rho = theta"):
        at_rest = regularizer.grad_rho(rho, rho)
    tried.tensor("a gradient at rho = theta", at_rest, several[1:], rho)
    with tried.working("a projection on GRAD"):
        projected = regularizer.project(away)
        inside = regularizer.contains(projected) & regularizer.contains(gradient)
    tried.tensor("a projection on GRAD", projected, several, rho)
    if not bool(inside.all()):
        raise tried.refusal("gradients, and projections, that its GRAD contains")


def _try_slope(problem: Problem, tried: Tried) -> None:
    """Hold ``w(r) r`` against the profile's difference quotient, and against the radius of GRAD."""
    regularizer = problem.regularizer
    r = torch.tensor([*LENGTHS, *FARTHER], dtype=torch.float64)
    with tried.working("a profile, a weight and a second derivative"):
        profile, slope = regularizer.profile(r), regularizer.weight(r) * r
        apart = (regularizer.profile(r * (1 + NUDGE)) - regularizer.profile(r * (1 - NUDGE))) / 2
        second = regularizer.second(r)
    near = slice(len(LENGTHS))
    for name, found in (("profile", profile), ("weight", slope), ("second derivative", second)):
        if not isinstance(found, Tensor) or found.shape != r.shape:
            raise tried.refusal(f"a {name} of each distance, {tuple(r.shape)}")
        tried.tensor(f"a {name}", found[near], tuple(r[near].shape), r)
    columns = (one.tolist() for one in (r, profile, apart, slope))
    for at, value, step, found in zip(*columns, strict=True):
        wanted = step / (NUDGE * at)
        # What is lost to rounding where the profile is far from 0 and hardly rises.
        lost = abs(value) / at * ROUNDED
        if abs(wanted - found) > AGREEMENT * max(abs(wanted), abs(found)) + lost:
            raise tried.refusal(
                f"a weight that is the slope of the profile over r, and at r = {at:g} the slope "
                f"is {wanted:.6g} and r times the weight is {found:.6g}"
            )
        if abs(found) > regularizer.radius * (1 + EDGE) and math.isfinite(found):
            raise tried.refusal(
                f"a radius of GRAD that no slope exceeds, and it is {regularizer.radius:.6g} and "
                f"at r = {at:g} the slope is {found:.6g}"
            )


def try_inverse(problem: Problem) -> None:
    """Ask a regulariser for the distance at which it has a slope.

    Raises
    ------
    ConfigError
        If ``inverse_slope`` raises, or its answer has another slope.
    """
    regularizer = problem.regularizer
    tried = Tried(REGULARIZERS.point, problem.config.regularizer)
    r = torch.tensor(LENGTHS, dtype=torch.float64)
    with tried.working("an inverse_slope, which this attack needs,"):
        slope = regularizer.weight(r) * r
        slope = slope[regularizer.attains(slope)]
        back = regularizer.inverse_slope(slope)
    tried.tensor("an inverse_slope", back, tuple(slope.shape), slope)
    again = regularizer.weight(back) * back
    if bool((back < 0).any()) or bool(((again - slope).abs() > INVERTED * slope.abs()).any()):
        raise tried.refusal(
            f"an inverse_slope, which this attack needs, and of the slopes {_listed(slope)} it "
            f"gives {_listed(back)}, whose slopes are {_listed(again)}"
        )


def try_step_sizes(problem: Problem) -> None:
    """Ask for the server's step sizes: none may be 0, nor infinite.

    Raises
    ------
    ConfigError
        If ``server-lr = auto`` asks for a smoothness that the regulariser does not give, or a
        number decays to 0 before the last round.
    """
    config, regularizer = problem.config, problem.regularizer
    automatic = config.server_lr == "auto"
    if automatic and config.way.coupled:
        tried = Tried(REGULARIZERS.point, config.regularizer)
        with tried.working("an envelope_smoothness"):
            smooth = float(regularizer.envelope_smoothness(config.users))
        if not smooth > 0 or (math.isinf(smooth) and math.isinf(regularizer.radius)):
            raise ConfigError(
                f"server-lr = auto: expected a number, as regularizer = {config.regularizer} "
                f"gives no step size (its envelope_smoothness is {smooth:g})"
            )
    sizes = server_step_sizes(problem)
    for round in (1, config.rounds):
        eta = sizes.at(round)
        if not 0 < eta < math.inf:
            raise ConfigError(
                f"server-lr = {config.server_lr}: expected {'a number' if automatic else 'one'} "
                f"with which rho moves in every round, and eta is {eta:g} in round {round}"
            )


def _listed(numbers: Tensor) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers.tolist())
