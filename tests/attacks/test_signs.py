"""Every attack of the table goes to its own side: to its target, or against the honest mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_flower.attacks.table import ATTACKS
from pfl_flower.run.problem import build_problem
from tests.support.runs import configure, play

TRIGGERED = {name for name, row in ATTACKS.items() if row.trigger}
"""Their sides are shares of triggered points: ``test_backdoor.py``."""
TARGETED = {"cga", "rule-aware", "gradient-matching", "model", "data", "label-flip"}
Side = Callable[[Tensor, Tensor], bool]
"""Whether a report ``(d,)`` is on an attack's side of honest ones ``(m, d)``."""


def against(sent: Tensor, honest: Tensor) -> bool:
    mean = honest.mean(dim=0)
    return float((sent - mean) @ mean) < 0


def below(sent: Tensor, honest: Tensor) -> bool:
    """By as many deviations in every coordinate, downwards."""
    away = (sent - honest.mean(dim=0)) / honest.std(dim=0)
    return float(away.max()) < 0 and float(away.std()) < 1e-6 * float(-away.mean())


def beyond(sent: Tensor, honest: Tensor) -> bool:
    """In every coordinate past the last honest number, where they do not pull."""
    side = -honest.mean(dim=0).sign()
    return bool((side * sent >= (side * honest).amax(dim=0)).all())


def on_the_line(sent: Tensor, honest: Tensor) -> bool:
    """Along the mean, to either side: the one that harms is chosen, and tested with the search."""
    mean = honest.mean(dim=0)
    return abs(float(sent @ mean)) > (1 - 1e-9) * float(sent.norm() * mean.norm()) > 0


def among(sent: Tensor, honest: Tensor) -> bool:
    return any(torch.equal(sent, row) for row in honest)


def by_deviations(sent: Tensor, honest: Tensor) -> bool:
    away = (sent - honest.mean(dim=0)) / honest.std(dim=0)
    return float(away.std()) < 1e-6 * abs(float(away.mean()))


def noise(sent: Tensor, honest: Tensor) -> bool:
    """As likely to one side as to the other."""
    return not on_the_line(sent, honest) and float(sent.norm()) > 0


SIDES: dict[str, Side] = {
    "sign-flip": against,
    "inner-product": against,
    "fang-krum": against,
    "fang-trimmed-mean": beyond,
    "little-is-enough": below,
    "min-max": below,
    "min-sum": below,
    "fitted-little-is-enough": by_deviations,
    "fitted-inner-product": on_the_line,
    "mimic": among,
    "gaussian": noise,
}


def test_every_attack_has_a_side() -> None:
    assert set(ATTACKS) == TRIGGERED | TARGETED | set(SIDES)


@pytest.mark.parametrize("attack", sorted(TARGETED))
def test_it_ends_nearer_to_its_target_than_without_it(attack: str) -> None:
    keys: dict[str, Any] = {"rounds": 30}
    target = build_problem(configure(strategic_users="3,4", **keys)).target

    def end(**more: str) -> float:
        return float((play(configure(**keys, **more))[-1].rho - target).norm())

    assert end(attack=attack, strategic_users="3,4") < 0.95 * end(strategic_users="none")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("attack", SIDES)
def test_what_is_sent_is_on_its_side_of_the_honest_reports(attack: str, seed: int) -> None:
    row = ATTACKS[attack]
    told = {"attack_knowledge": "omniscient"} if "omniscient" in row.knows else {}
    strong = {"attack_strength": 1.5} if "attack-strength" in row.reads else {}
    keys: dict[str, Any] = {"users": 7, "strategic_users": "5,6", "rounds": 1, "seed": seed}
    (record,) = play(configure(attack=attack, **keys, **told, **strong))
    rows = record.accepted.values_by_user
    for sent in rows[5:]:
        assert SIDES[attack](sent, rows[:5])
