"""The attack that pushes: it knows the rule and all reports, and wants rho far away."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from pfl_flower.attacks.rule_aware import RuleAware
from pfl_flower.attacks.setup import AttackSetup
from pfl_flower.support.seeding import generator

FAR = 1000.0
"""How far its target is: hundreds of times what sets honest users apart."""


@lru_cache(maxsize=64)
def target(dim: int, direction: int, sign: int) -> Tensor:
    """Return the target ``(d,)`` of a direction, that of the other sign on the other side."""
    way = torch.randn(dim, generator=generator(direction, "influence"), dtype=torch.float64)
    return sign * FAR * way / torch.linalg.vector_norm(way)


def push(setup: AttackSetup, *, direction: int = 1, sign: int = 1, trials: int = 48) -> RuleAware:
    """Return ``rule-aware``, omniscient, with a target far away in some direction."""
    return RuleAware(
        target=target(len(setup.target), direction, sign).to(setup.target),
        rule=setup.rule,
        within=setup.plausible,
        datasets=(),
        copies=setup.allies,
        limit=setup.settings.max_gradient_norm,
        trials=trials,
    )
