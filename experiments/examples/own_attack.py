"""An attack of one's own: what cancelling the others' gradients is worth.

CGA estimates what the others sent and cancels it. This attacker leaves that out: it reports
``(rho_t - target)/eta_t``, as if it were alone, and the server's step ends at ``target - eta_t G``,
G the others' sum. Under squared l2 rho then stays about 4 from the target, which is near enough for
nearly all digits to be misread. Under l2 nothing is lost, and nothing was won: either report is as
long as the ball allows and points nearly the same way.

    python -m experiments.examples.own_attack
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

import pfl_flower as pfl
from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.setup import AttackSetup


class Nothing(NamedTuple):
    """Nothing is remembered from round to round."""


class Uncancelled:
    """Report ``(rho_t - target)/eta_t``; the harness projects it on GRAD(rho_t)."""

    def __init__(self, setup: AttackSetup) -> None:
        self.target = setup.target

    def init(self, rho: Tensor) -> Nothing:
        """Return the empty state."""
        return Nothing()

    def update(self, state: Nothing, seen: Observation) -> tuple[Tensor, Nothing]:
        """Return the report of one round."""
        return (seen.rho - self.target) / seen.eta, state


SMALL: dict[str, Any] = {"rounds": 25, "points_per_user": 100, "evaluate_every": 0}
"""Some seconds; without it the preset's own sizes."""


def main(**keys: Any) -> pfl.Sweep:
    """Run both attacks under both regularisers, and print how near rho comes to the target."""
    grid = pfl.sweep(
        "digits-squared-l2",
        {"regularizer": ["squared-l2", "l2"], "attack": ["cga", Uncancelled]},
        **{**SMALL, **keys},
    )
    print(grid.table("distance_to_target", "accuracy_target"))
    return grid


if __name__ == "__main__":
    main()
