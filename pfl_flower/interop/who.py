"""On which nodes of somebody's app an attack is active."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from pfl_flower.support.errors import ConfigError
from pfl_flower.support.seeding import generator

PARTITION, PARTITIONS = "partition-id", "num-partitions"
"""What Flower's simulation tells every node, and the operator of a real one may."""
STRATEGIC = "strategic"
"""The value of ``role`` in a node's own configuration that makes it attack."""


@dataclass(frozen=True, kw_only=True)
class Attackers:
    """Who attacks: a node that was started as one, and those of some partitions.

    Parameters
    ----------
    partitions : collection of int or None
        Ids of the partitions that do.
    share : float or None
        A share of all partitions, rounded, at least one: drawn by ``seed``, on every node alike.
    seed : int
        Of that draw.

    Raises
    ------
    ConfigError
        If both are given, or one is out of its range.
    """

    partitions: Collection[int] | None
    share: float | None
    seed: int

    def __post_init__(self) -> None:
        """Refuse what names nobody."""
        if self.partitions is not None and self.share is not None:
            raise ConfigError(f"share = {self.share}: expected partitions or share, not both")
        if self.partitions is not None:
            if isinstance(self.partitions, str | bytes) or not isinstance(
                self.partitions, Collection
            ):
                raise ConfigError(f"partitions = {self.partitions!r}: expected a list of ids")
            for one in self.partitions:
                if isinstance(one, bool) or not isinstance(one, int) or one < 0:
                    raise ConfigError(f"partitions = {one}: expected ids from 0")
            if not self.partitions:
                raise ConfigError("partitions = []: expected at least one id, or none given")
        if self.share is not None:
            number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
            if not number or not 0 < self.share <= 1:
                raise ConfigError(f"share = {self.share}: expected more than 0, at most 1")

    def chosen(self, partitions: int | None) -> frozenset[int]:
        """Return the ids that attack, of so many partitions.

        Raises
        ------
        ConfigError
            If an id is beyond the last: the attack would run nowhere.
        """
        if self.partitions is not None:
            if partitions is not None and max(self.partitions) >= partitions:
                right = f"expected ids from 0 to {partitions - 1}"
                raise ConfigError(f"partitions = {max(self.partitions)}: {right}")
            return frozenset(self.partitions)
        if self.share is None:
            return frozenset()
        if partitions is None:
            raise ConfigError(
                f"share = {self.share}: expected nodes that know num-partitions, as those of a "
                'simulation; start a node with role="strategic" instead'
            )
        draw = generator(self.seed, "attackers")
        order = torch.randperm(partitions, generator=draw).tolist()
        # Halves upwards, where Python rounds to even numbers.
        return frozenset(order[: max(1, int(self.share * partitions + 0.5))])

    def count(self, node_config: Mapping[str, object]) -> int:
        """Return how many attack, as far as this node knows: at least itself."""
        return max(1, len(self.chosen(number_in(node_config, PARTITIONS))))

    def has(self, node_config: Mapping[str, object]) -> bool:
        """Return whether the node with this configuration attacks.

        Raises
        ------
        ConfigError
            As ``chosen``, or if the node does not know its own partition.
        """
        if node_config.get("role") == STRATEGIC:
            return True
        chosen = self.chosen(number_in(node_config, PARTITIONS))
        own = number_in(node_config, PARTITION)
        if chosen and own is None:
            raise ConfigError(
                f"partitions = {', '.join(map(str, sorted(chosen)))}: expected nodes that know "
                'their partition-id; start a node with role="strategic" instead'
            )
        return own in chosen


def number_in(node_config: Mapping[str, object], key: str) -> int | None:
    """Return a whole number of a node's configuration, None if it has none."""
    value = node_config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
