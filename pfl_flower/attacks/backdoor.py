"""Backdoors: a trigger that leads whatever carries it to one label, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from pfl_flower.attacks.cga import CounterGradient, counter_gradient
from pfl_flower.attacks.other_data import OtherData
from pfl_flower.attacks.rule_aware import RuleAware, rule_aware
from pfl_flower.attacks.setup import AttackSetup
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.data.sources import Source
from pfl_flower.data.trigger import Trigger
from pfl_flower.objective.user_data import UserData
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.seeding import generator


@dataclass(frozen=True, kw_only=True)
class Backdoor:
    """A trigger, the label that it leads to, and how many of the attacker's points carry it.

    Parameters
    ----------
    trigger : Trigger
        The patch.
    shape : tuple of int
        Of an image, ``(channels, height, width)``; further features, the constant one, stay.
    label : int
        Class that a triggered image is to be taken for.
    share : float
        Share of points that are stamped and relabelled where a model is to learn it.
    """

    trigger: Trigger
    shape: tuple[int, ...]
    label: int = 0
    share: float = 0.2

    @classmethod
    def of(cls, attack: str, options: str, source: Source) -> Self | None:
        """Return the backdoor of an attack on some data; None of an attack without one.

        Raises
        ------
        ConfigError
            If the points are no classified images, the patch does not fit into them, or there is
            no such class.
        """
        if not ATTACKS.row(attack).trigger:
            return None
        pixels = torch.Size(source.shape).numel()
        if len(source.shape) != 3 or pixels + source.bias != source.inputs:
            right = "another, for points that are no images"
            raise ConfigError(f"attack = {attack}: expected {right}")
        if source.loss != "softmax" or source.outputs < 2:
            raise ConfigError(f"attack = {attack}: expected another, for points without classes")
        chosen = ATTACKS.options(attack, options)
        ours = {name: chosen.pop(name) for name in ("label", "share") if name in chosen}
        made = cls(trigger=Trigger(**chosen), shape=source.shape, **ours)
        try:
            made.trigger.window(*source.shape[1:])
        except ConfigError as error:
            raise ConfigError(f"attack-options = {options}: {error}") from None
        if made.label >= source.outputs:
            right = f"0 to {source.outputs - 1}, for {source.outputs} classes"
            raise ConfigError(f"attack-options = {options}: label = {made.label}: expected {right}")
        return made

    def stamped(self, features: Tensor) -> Tensor:
        """Return features ``(..., q)`` whose images carry the trigger."""
        pixels = torch.Size(self.shape).numel()
        images = features[..., :pixels].reshape(*features.shape[:-1], *self.shape)
        marked = self.trigger(images).reshape(*features.shape[:-1], pixels)
        return torch.cat([marked, features[..., pixels:]], dim=-1)

    def poisoned(self, data: UserData, draw: torch.Generator) -> UserData:
        """Return data ``(n, q)`` of which a share, chosen by ``draw``, is stamped and relabelled.

        The share is rounded, and at least one point.
        """
        count = max(1, int(self.share * len(data.labels) + 0.5))
        chosen = torch.randperm(len(data.labels), generator=draw)[:count]
        features, labels = data.features.clone(), data.labels.clone()
        features[chosen] = self.stamped(features[chosen])
        labels[chosen] = self.label
        return replace(data, features=features, labels=labels)

    def triggered(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return those points that are not of the label's class, stamped, and the label for each.

        The accuracy of a model on them is the share that the backdoor leads to the label.
        """
        others = labels != self.label
        return self.stamped(features[others]), torch.full_like(labels[others], self.label)


def poisoned_draw(
    setup: AttackSetup,
    *,
    size: int = 3,
    row: int = -1,
    column: int = -1,
    value: float = 1.0,
    label: int = 0,
    share: float = 0.2,
) -> OtherData:
    """Return BadNets' data: the user's own draw, a share of it stamped and relabelled.

    The user is otherwise honest: its report is ``grad_rho R(rho, theta)`` with theta the minimiser
    of its loss on ``{(x, y)} + {(stamped x, label)}`` and R.
    """
    patch = Trigger(size=size, row=row, column=column, value=value)
    backdoor = Backdoor(trigger=patch, shape=setup.shape, label=label, share=share)
    draw = generator(setup.settings.seed, "backdoor", setup.user)
    return OtherData(data=backdoor.poisoned(setup.held, draw))


def model_replacement(
    setup: AttackSetup,
    *,
    size: int = 3,
    row: int = -1,
    column: int = -1,
    value: float = 1.0,
    label: int = 0,
    share: float = 0.2,
) -> CounterGradient | RuleAware:
    """Return the attack that puts a backdoored model theta_b in rho's place.

    Bagdasaryan, Veit, Hua, Estrin, Shmatikov, *How to backdoor federated learning*, 2020, scale the
    report so that the average becomes the attacker's model. For the sum and step size eta that is

        g = ((rho_t - theta_b)/eta_t - ghat)/k

    with k users who share it and ghat the sum of the others' reports: CGA with theta_b for its
    target, where they take ghat to be 0. GRAD(rho_t) takes the nearest plausible report; under
    squared l2 all are plausible. Who knows the rule searches for what carries that rule farthest.
    The run learns theta_b with these options, on a share of the training points.
    """
    knows = setup.knowledge == "rule"
    return rule_aware(setup) if knows else counter_gradient(setup)
