"""What a rule that sees rounds is told of somebody's app, and what it remembers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from typing import Any

import torch
from torch import Tensor

from pfl_flower.aggregation.rounds import Received
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.seeding import generator


@dataclass(frozen=True, kw_only=True)
class AppSetup:
    """What a rule that sees rounds is made of here: the ``RuleSetup`` of somebody's app.

    Attributes
    ----------
    seed : int
        Of its draws.
    users : int
        How many clients have replied so far, numbered from 0.
    """

    seed: int
    users: int

    @property
    def settings(self) -> Any:
        """Return what is known of a run: these two."""
        return self

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Return random draws that are a function of the seed and of the words."""
        return generator(self.seed, "aggregation", *purpose)

    def root(self, rho: Tensor, theta: Tensor, points: int, round: int) -> tuple[Tensor, Tensor]:
        """Refuse: an app's server has no points of its own.

        Raises
        ------
        ConfigError
            Always.
        """
        raise ConfigError("rule: expected one that asks for no points of the server's own")


class Rounds:
    """A rule with ``init`` and ``update`` in the rounds of an app.

    It is told the clients by numbers, which they get in the order in which they first reply, within
    a round in that of their rows, entry by entry. Nodes' ids would not do: Flower draws them anew
    in every run, and with them ``bucketing`` would deal anew. Of clients whose first rows are equal
    the ids decide. Their number is not known before: the rule is made anew as it grows, and of what
    it remembers, tensors of which some have a row for each client, those rows come first.

    Parameters
    ----------
    factory : callable
        From an ``AppSetup`` to the rule.
    seed : int
        Of its draws.
    """

    def __init__(self, factory: Callable[[AppSetup], Any], seed: int) -> None:
        self._factory, self._seed = factory, seed
        self._numbers: dict[int, int] = {}
        self._rule: Any = None
        self._made_for = 0
        self._state: Any = None

    def direction(
        self, server_round: int, nodes: Sequence[int], rho: Tensor, rows: Tensor
    ) -> Tensor:
        """Return what the rule makes of the rows ``(k, d)`` of these nodes, and remember."""
        self._number(nodes, rows)
        users = torch.tensor([self._numbers[node] for node in nodes])
        order = users.argsort()
        self._grow(rho)
        received = Received(round=server_round, users=users[order], rows=rows[order], rho=rho)
        direction: Tensor
        direction, self._state = self._rule.update(self._state, received)
        return direction

    def _number(self, nodes: Sequence[int], rows: Tensor) -> None:
        """Give numbers to nodes that have none."""
        new = [place for place, node in enumerate(nodes) if node not in self._numbers]

        def compared(one: int, other: int) -> int:
            return _compared(rows[one], rows[other]) or nodes[one] - nodes[other]

        for place in sorted(new, key=cmp_to_key(compared)):
            self._numbers[nodes[place]] = len(self._numbers)

    def _grow(self, rho: Tensor) -> None:
        """Make the rule for as many clients as are known by now, with what it remembers."""
        known = len(self._numbers)
        if self._made_for == known:
            return
        self._rule, self._made_for = self._factory(AppSetup(seed=self._seed, users=known)), known
        fresh = self._rule.init(rho)
        if self._state is not None:
            kept = zip(self._state, fresh, strict=True)
            fresh = type(fresh)(*(_laid(old, new) for old, new in kept))
        self._state = fresh


def _compared(one: Tensor, other: Tensor) -> int:
    """Return -1, 0 or 1 as a row comes before another, is equal, or comes after it."""
    apart = (one != other).nonzero()
    if len(apart) == 0:
        return 0
    first = int(apart[0])
    return -1 if one[first] < other[first] else 1


def _laid(old: Tensor, new: Tensor) -> Tensor:
    """Return what was remembered of fewer clients, with what is new of the others."""
    if old.shape == new.shape:
        return old
    laid = new.clone()
    laid[: len(old)] = old
    return laid
