"""What only the problem itself tells of where a run with ``equilibrium`` leads.

Refused as the keys of ``pfl_flower.run.rest_rules`` are, once the regulariser is built.
"""

from __future__ import annotations

import math

import torch

from pfl_flower.objective.radial import Regularizer
from pfl_flower.objective.table import REGULARIZERS
from pfl_flower.run.settings import Settings
from pfl_flower.support.errors import ConfigError

PROBED = torch.logspace(-6, 6, 241, dtype=torch.float64)
"""Distances ``||rho - theta||`` at which a regulariser of one's own is asked for its slope."""
ROUNDING = 1e-9
"""By how much, relative to itself, a slope may seem to fall where it does not."""


def check_rest(config: Settings, regularizer: Regularizer) -> None:
    """Refuse an equilibrium where it is not known where the run leads.

    Raises
    ------
    ConfigError
        One line that names the keys.
    """
    if not config.equilibrium:
        return
    named = f"false, with regularizer = {config.regularizer}"
    right = ""
    if REGULARIZERS.row(config.regularizer) is REGULARIZERS.own and not convex(regularizer):
        right = f"{named}, which is not convex: where the run leads depends on its start"
    elif config.local_solver != "exact" and regularizer.kink > 0:
        right = (
            f"{named} and local-solver = {config.local_solver}, as steps about a kink do not rest"
        )
    elif _competing(config) and _told(config) and math.isfinite(regularizer.radius):
        right = f"{named}, {_told(config)} and several targets, whose limit is not known"
    if right:
        raise ConfigError(f"equilibrium = true: expected {right}")


def convex(regularizer: Regularizer) -> bool:
    """Return whether ``phi'`` is nowhere negative and nowhere falls, as far as it is probed."""
    slope = regularizer.weight(PROBED) * PROBED
    rises = slope[1:] >= slope[:-1] * (1 - ROUNDING)
    return bool((slope >= 0).all() and rises.all())


def _told(config: Settings) -> str:
    """Return the key by which attackers hear of honest reports, and not of each other's."""
    if config.attack_knowledge == "omniscient":
        return "attack-knowledge = omniscient"
    return "estimator = oracle" if config.estimator == "oracle" else ""


def _competing(config: Settings) -> bool:
    return bool(config.strategic()) and len(set(config.shifts())) > 1
