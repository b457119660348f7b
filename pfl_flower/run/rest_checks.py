"""What must hold for rho* to be where a run leads, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pfl_flower.run.checks import Check, exactly
from pfl_flower.run.config import RunConfig

FOUND, COUNTED = "equilibrium", "equilibrium: users counted"
OTHERS, WENT = "equilibrium_others", "equilibrium: steps of rho"
REST_CHECKS = frozenset({FOUND, COUNTED, OTHERS, WENT})
"""The names of the checks on where a run leads."""


def told_rest(metrics: Mapping[str, float]) -> str:
    """Return what rho* is, in a few words; empty where it was not looked for.

    >>> told_rest({"equilibrium_converged": 1.0, "equilibrium_length": 0.0})
    'one point'
    >>> told_rest({"equilibrium_converged": 0.0, "equilibrium_length": 2.5})
    'one of many, 2.5 apart: the nearest to rho'
    """
    if "equilibrium_converged" not in metrics:
        return ""
    length, shifts = metrics["equilibrium_length"], metrics.get("equilibrium_shifts", 0)
    if metrics["equilibrium_converged"]:
        return f"one point, up to {shifts:g} shifts that no point sees" if shifts else "one point"
    if math.isinf(length):
        return "nowhere: LOSS falls, or is flat, without end"
    return f"one of many, {length:.4g} apart: the nearest to rho" if length else "not found"


def rest_checks(config: RunConfig, metrics: Mapping[str, float], behaviour: str) -> list[Check]:
    """Return what makes rho* a yardstick of this run; nothing where it was not asked for.

    It was found: one minimiser, or a set that ends. It is of the users who took part: all of them
    counted in the last round, and those were strategic whom the configuration names, which at a
    site would be the nodes' own word. And rho did not run away from it.
    """
    if not config.equilibrium:
        return []
    told = told_rest(metrics)
    found = bool(metrics["equilibrium_converged"]) or 0 < metrics["equilibrium_length"] < math.inf
    away = behaviour == "diverging" and metrics["equilibrium_approach"] >= 1
    went = "diverging, farther from rho* than at the start" if away else behaviour
    others = exactly(0).check(OTHERS, [metrics[OTHERS]])
    return [
        Check(FOUND, told, "one point, or the nearest of many", found),
        exactly(config.users).check(COUNTED, [metrics["accepted"]]),
        *([] if config.site else [others]),
        Check(WENT, went, "not away from rho*", not away),
    ]
