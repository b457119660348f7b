"""The users of a problem: how many points each has, and users as batched tensor problems."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from pfl_flower.data.sources import Source
from pfl_flower.objective.losses import PointLoss
from pfl_flower.objective.models import Model
from pfl_flower.objective.own_points import OwnPoints
from pfl_flower.objective.plausible import Ball, Plausible
from pfl_flower.objective.regularizers import Regularizer, SquaredL2
from pfl_flower.objective.user_data import Stack, UserData, padded_size
from pfl_flower.run.config import RunConfig
from pfl_flower.solvers.population import Population
from pfl_flower.support.memo import Memo, remembered
from pfl_flower.support.seeding import generator, user_rows

CHUNK = 64
"""Users whose points are held at a time where only a number is wanted of each."""


@dataclass(frozen=True)
class UserSets:
    """The part of a ``Problem`` that is about its users: what they hold, and what is made of it."""

    config: RunConfig
    source: Source
    model: Model
    loss: PointLoss
    regularizer: Regularizer
    dtype: torch.dtype
    device: torch.device
    memo: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)

    @cached_property
    def plausible(self) -> Plausible:
        """What a report may be: in GRAD(rho), or where it is no gradient of R not too long."""
        way, limit = self.config.way, self.config.max_gradient_norm
        if way.coupled:
            return self.regularizer
        return Ball((limit or math.inf) if way.moves else 0.0)

    @cached_property
    def pretended(self) -> Regularizer:
        """What a user who holds one model whatever rho is says by its reports: R, or a loss.

        Where reports are gradients of L_n, ``lam ||rho - theta_spade||^2``.
        """
        return self.regularizer if self.config.way.coupled else SquaredL2(lam=self.config.lam)

    @cached_property
    def initial(self) -> Tensor:
        """rho_0 = theta_0, ``(d,)``."""
        draw = generator(self.config.seed, "initial")
        return self.model.initial(1, draw, self.dtype)[0].to(self.device)

    @remembered
    def population(self, users: tuple[int, ...]) -> Population:
        """Return the honest users of these ids; their data stay on the device across rounds."""
        return self.draw(users)

    def draw(self, users: tuple[int, ...], *, compress: bool = True) -> Population:
        """Return honest users with data drawn anew."""
        return self.population_of(self._stacks(users), compress=compress)

    def alone(self, users: tuple[int, ...]) -> Population:
        """Return the same users without the others: ``solve`` about 0 gives ``argmin L_n``.

        ``nu ||theta||^2`` stands in R's place, which takes nu > 0; in float64, as exact solves are.
        """
        coupling = SquaredL2(lam=self.config.nu)
        return self.in_double.population_of(
            self.in_double._stacks(users), regularizer=coupling, nu=0.0
        )

    @remembered
    def smoothness(self, asked: int) -> float:
        """Return an upper bound on the curvature of the sum of any ``asked`` users' L_n.

        It is the sum of so many of the largest bounds; in float64, from a few users at a time.
        """
        everyone, size = range(self.config.users), self.config.chunk_users or CHUNK
        bounds = [
            self.in_double.draw(tuple(everyone[first : first + size]), compress=False).smoothness()
            for first in range(0, len(everyone), size)
        ]
        return float(torch.cat(bounds).sort(descending=True).values[:asked].sum())

    def own_tests(self, users: tuple[int, ...]) -> tuple[tuple[int, ...], OwnPoints]:
        """Return those of the users who keep a test set, and their test sets."""
        sets = {user: found for user in users if (found := self.source.own_tests(user)) is not None}
        return tuple(sets), OwnPoints(list(sets.values()), self.dtype, self.device)

    def _stacks(self, users: tuple[int, ...]) -> list[Stack]:
        by_size, weight = defaultdict(list), self._weight
        for row, user in enumerate(users):
            by_size[self.size(user)].append(row)
        parts: dict[int, list[tuple[Sequence[int], UserData]]] = defaultdict(list)
        for size, rows in by_size.items():
            chosen = users if len(rows) == len(users) else [users[row] for row in rows]
            data = self.source.draw_many(chosen, size, self.config.seed)
            weights = torch.full((len(rows), size), weight, dtype=torch.float64)
            parts[padded_size(size)].append((rows, replace(data, weights=weights)))
        return [Stack.join(group, self.dtype) for _, group in sorted(parts.items())]

    def datasets(self, users: tuple[int, ...]) -> list[UserData]:
        """Return what these users hold."""
        data = [self.source.draw(user, self.size(user), self.config.seed) for user in users]
        return [
            replace(one, weights=torch.full((len(one.labels),), self._weight, dtype=torch.float64))
            for one in data
        ]

    @cached_property
    def _asked(self) -> tuple[int, ...]:
        return self.config.points_asked()

    def size(self, user: int) -> int:
        """Return how many points a user trains on; under draws ids past the last as the last.

        Where points are on nodes alone this is what is asked, or the least that there can be.
        """
        held = self.source.size(user)
        if not self.source.at_hand and not self._asked:
            return 1
        return self._asked[min(user, len(self._asked) - 1)] if held is None else held

    @cached_property
    def points(self) -> tuple[int, ...]:
        """How many points each user trains on, in the order of their ids; empty where unknown."""
        if not self.source.at_hand:
            return ()
        return tuple(self.size(user) for user in range(self.config.users))

    @cached_property
    def _weight(self) -> float:
        """What each point counts for: 1, or one over the mean number of points per user."""
        points = self.points
        return len(points) / sum(points) if self.config.reduction == "scaled-sum" else 1.0

    def population_of(
        self,
        users: Sequence[UserData] | Sequence[Stack],
        *,
        compress: bool = True,
        regularizer: Regularizer | None = None,
        nu: float | None = None,
    ) -> Population:
        """Return users with these datasets, who share the run's model, loss and regulariser."""
        return Population(
            users,
            model=self.model,
            loss=self.loss,
            regularizer=self.regularizer if regularizer is None else regularizer,
            nu=self.config.nu if nu is None else nu,
            reduction="mean" if self.config.reduction == "mean" else "sum",
            dtype=self.dtype,
            device=self.device,
            tolerance=self.config.solver_tolerance,
            max_iterations=self.config.solver_iterations,
            compress=compress,
        )

    def local_start(self, users: tuple[int, ...], centres: Tensor | None = None) -> Tensor:
        """Return the local models before the first round, ``(k, d)``.

        They are ``centres (k, d)``, rho_0 when absent, plus normal noise of deviation
        ``initialization-noise`` (Appendix I.3).
        """
        start = self.initial.repeat(len(users), 1) if centres is None else centres.clone()
        scale = self.config.initialization_noise
        if scale > 0:
            row = torch.empty(self.model.dim, dtype=torch.float64)
            noise = user_rows(
                lambda draw, _: row.normal_(generator=draw),
                [row],
                users,
                lambda user: (self.config.seed, "local start", user),
            )[0]
            start += scale * noise.to(start)
        return start

    @cached_property
    def in_double(self) -> Self:
        """The same problem in float64, in which attacks and equilibria are worked out."""
        return self if self.dtype == torch.float64 else replace(self, dtype=torch.float64)
