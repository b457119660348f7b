"""Attacks that need no code of the attacker's: the honest code, on other data (Section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pfl_flower.attacks.poisoning.aim import PoisonedData
from pfl_flower.attacks.setup import AttackSetup
from pfl_flower.objective.user_data import UserData


@dataclass(frozen=True, kw_only=True)
class OtherData:
    """What the honest code of a strategic user runs on.

    Attributes
    ----------
    data : UserData or PoisonedData
        In place of the user's own draw; of fabricated data the run also measures what they cost.
    start : Tensor or None
        Where the local model begins, ``(d,)``; at rho_0 when absent.
    """

    data: UserData | PoisonedData
    start: Tensor | None = None


def fabricated(setup: AttackSetup) -> OtherData:
    """Return data made to hold theta_spade, and theta_spade to start from if the run says so."""
    started = setup.settings.initialization == "attack-model"
    return OtherData(data=setup.fabricated, start=setup.attack_model if started else None)


def relabelled(setup: AttackSetup) -> OtherData:
    """Return label flipping's data: the user's own draw, each label as the attacker wants it.

    Class c becomes c + target-shift, an answer or a sign its opposite; nothing else is known or
    done (Tolpegin, Truex, Gursoy, Liu, *Data poisoning attacks against federated learning
    systems*, 2020).
    """
    return OtherData(data=setup.relabelled)
