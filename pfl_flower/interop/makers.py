"""What makes each attack of the table, of what the mod knows on this node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from pfl_flower.attacks.attack import Attack
from pfl_flower.attacks.untargeted import (
    GaussianNoise,
    InnerProduct,
    LittleIsEnough,
    MinMax,
    SignFlip,
    least_noticed,
)
from pfl_flower.interop.arguments import Arguments
from pfl_flower.interop.layers import FLOATING, Layers, Values
from pfl_flower.interop.models import Model
from pfl_flower.interop.table import MOD_ATTACKS
from pfl_flower.interop.updates import (
    FreeRider,
    ModelReplacement,
    Stale,
    WeightedCounterGradient,
)
from pfl_flower.interop.who import PARTITION, PARTITIONS, number_in
from pfl_flower.support.errors import ConfigError

Forgery: TypeAlias = Callable[[Layers], Mapping[str, Values]]
"""From the honest layers to a reply that is wrong in its form."""

GAUSSIAN = 10.0
FLIP = 1.0


@dataclass(frozen=True, kw_only=True)
class ModSetup:
    """What a factory of ``MOD_ATTACKS`` is given.

    Attributes
    ----------
    rows : int
        Honest reports that the attack is shown: the client's own, then its surrogates'.
    partition : int
        The node's, for its own draws.
    clients : int or None
        How many there are, as far as the node knows.
    coalition : int
        How many of them report the same.
    others
        The arguments of ``attack_mod``, the target as a vector.
    """

    rows: int
    partition: int
    clients: int | None
    coalition: int
    seed: int
    strength: float | None = None
    target: Tensor | None = None
    weight: float | None = None
    delay: int | None = None
    boasts: bool = False

    @property
    def goal(self) -> Tensor:
        """The target, of an attack that needs one."""
        assert self.target is not None
        return self.target

    def known(self, what: str) -> int:
        """Return the number of clients, or refuse an attack whose strength follows from it."""
        if self.clients is None:
            raise ConfigError(
                f"strength = nothing: expected a number for {what} on a node that was not told "
                "how many partitions there are"
            )
        return self.clients


def sign_flip(setup: ModSetup) -> SignFlip:
    """Return the opposite way."""
    return SignFlip(datasets=(0,), strength=_given(setup.strength, FLIP))


def gaussian(setup: ModSetup) -> GaussianNoise:
    """Return noise."""
    strength = _given(setup.strength, GAUSSIAN)
    return GaussianNoise(datasets=(0,), seed=setup.seed, user=setup.partition, strength=strength)


def counter_gradient(setup: ModSetup) -> WeightedCounterGradient:
    """Return CGA against a weighted mean.

    The first guess of a weight errs upwards, which is slow and never diverges: half for one of two
    clients or more that count alike, all for one that says it has more examples than it has.
    """
    first = (1.0 if setup.boasts else 0.5) / setup.coalition
    return WeightedCounterGradient(
        target=setup.goal, weight=setup.weight, first=first, coalition=setup.coalition
    )


def model_replacement(setup: ModSetup) -> ModelReplacement:
    """Return the boosted way to the target."""
    weight = _given(setup.weight, 1.0)
    return ModelReplacement(target=setup.goal, weight=weight, coalition=setup.coalition)


def little_is_enough(setup: ModSetup) -> LittleIsEnough:
    """Return Baruch et al.'s attack, by default with their z."""
    z = setup.strength
    if z is None:
        z = least_noticed(setup.known("little-is-enough"), setup.coalition)
    return LittleIsEnough(datasets=tuple(range(setup.rows)), strength=z)


def inner_product(setup: ModSetup) -> InnerProduct:
    """Return Xie et al.'s attack, by default twice what turns the mean around."""
    strength = setup.strength
    if strength is None:
        honest = max(1, setup.known("inner-product") - setup.coalition)
        strength = 2.0 * honest / setup.coalition
    return InnerProduct(datasets=tuple(range(setup.rows)), strength=strength)


def min_max(setup: ModSetup) -> MinMax:
    """Return Shejwalkar and Houmansadr's attack."""
    return MinMax(datasets=tuple(range(setup.rows)))


def free_rider(setup: ModSetup) -> FreeRider:
    """Return who does not train."""
    return FreeRider()


def stale(setup: ModSetup) -> Stale:
    """Return who is late."""
    return Stale(delay=1 if setup.delay is None else setup.delay)


def honest(setup: ModSetup) -> SignFlip:
    """Return the honest report: the opposite of its opposite."""
    return SignFlip(datasets=(0,), strength=-1.0)


def not_a_number(setup: ModSetup) -> Forgery:
    """Return NaN for every floating number."""

    def forged(layers: Layers) -> Mapping[str, Values]:
        return {
            name: np.full_like(values, np.nan) if values.dtype.kind == FLOATING else values
            for name, values in layers.items()
        }

    return forged


def wrong_shape(setup: ModSetup) -> Forgery:
    """Return the first layer with its first row once more; a scalar as a row of two."""

    def forged(layers: Layers) -> Mapping[str, Values]:
        made = dict(layers)
        first = next(iter(made))
        rows = np.atleast_1d(made[first])
        made[first] = np.concatenate([rows, rows[:1]])
        return made

    return forged


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def make(
    arguments: Arguments,
    own: Model,
    rows: int,
    node_config: Mapping[str, object],
    target: Tensor | None,
) -> Attack[Any] | Forgery:
    """Return what the node reports by: an attack on so many honest reports, or a forgery.

    Raises
    ------
    ConfigError
        If the number of clients must be known and is not.
    """
    if not isinstance(arguments.attack, str):
        return arguments.attack
    setup = ModSetup(
        rows=rows,
        partition=number_in(node_config, PARTITION) or 0,
        clients=number_in(node_config, PARTITIONS),
        coalition=arguments.coalition or arguments.attackers.count(node_config),
        seed=arguments.seed,
        strength=arguments.strength,
        target=target,
        weight=arguments.weight,
        delay=arguments.delay,
        boasts=arguments.num_examples is not None,
    )
    module, _, name = MOD_ATTACKS[arguments.attack].factory.partition(":")
    made: Attack[Any] | Forgery = getattr(import_module(module), name)(setup)
    return made
