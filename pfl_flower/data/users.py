"""Users as a partition makes them: each has points of its own, to train on and to be tested on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfl_flower.data.away import Away
from pfl_flower.data.partitions import Dealt, Pool, Rows
from pfl_flower.data.sources import Source
from pfl_flower.data.table import PARTITIONS
from pfl_flower.objective.user_data import UserData
from pfl_flower.support.errors import ConfigError, DataError
from pfl_flower.support.left_out import LeftOut
from pfl_flower.support.run_settings import RunSettings
from pfl_flower.support.seeding import generator, seed_of

PARAMETERS = {
    "partition-alpha": "alpha",
    "partition-min-points": "min_points",
    "partition-classes": "classes",
    "partition-shards": "shards",
    "partition-similarity": "share",
}
"""Keys that single partitions read, and what these call them."""


def shared_out(source: Source, settings: RunSettings) -> Source:
    """Return the source of a run's users: the one given, or what its partition makes of it.

    Raises
    ------
    ConfigError
        If the partition is not to be had: one line with the key, and what would do.
    """
    name = settings.partition
    if isinstance(source, Away):
        tested = "test-share" in PARTITIONS.row(name).reads and settings.tested_share() > 0
        return source.shared_out(tested=tested)
    if PARTITIONS.row(name).by_class and source.loss == "least-squares":
        others = [other for other, row in PARTITIONS.items() if not row.by_class]
        right = f"{', '.join(others)}, for regression, which has no classes"
        raise ConfigError(f"partition = {name}: expected {right}")
    pool = Pool(source, settings.users, seed_of(settings.seed, "partition"))
    dealt = _deal(pool, settings)
    return source if dealt is None else Partitioned(pool, dealt, settings)


def _deal(pool: Pool, settings: RunSettings) -> Dealt | None:
    """Return the numbers of each user's points, checked; None where they are nobody's."""
    name = settings.partition
    row = PARTITIONS.row(name)
    if row.reads and not row.shared and pool.users > len(pool):
        right = f"at most {len(pool):,}, for partition = {name}, which has no more points"
        raise ConfigError(f"users = {pool.users}: expected {right}")
    keyed = {
        PARAMETERS[key]: getattr(settings, key.replace("-", "_"))
        for key in row.reads
        if key in PARAMETERS
    }
    made = PARTITIONS.make(name, settings.partition_options, pool, **keyed)
    return None if made is None else _checked(name, made, pool)


def _checked(name: str, made: Any, pool: Pool) -> Dealt:
    """Return what a partition made, in order, if that is points of the pool to each user.

    Raises
    ------
    ConfigError
        If a user has no point, or a point has two users, or is not of the pool.
    """
    where = f"partition = {name}: expected"
    if not isinstance(made, Sequence) or len(made) != pool.users:
        what = f"{len(made)} lists" if isinstance(made, Sequence) else f"a {type(made).__name__}"
        raise ConfigError(f"{where} a list of points for each of {pool.users:,} users, not {what}")
    dealt = [np.asarray(rows) for rows in made]
    for user, rows in enumerate(dealt):
        if rows.ndim != 1 or not len(rows) or rows.dtype.kind not in "iu":
            raise ConfigError(f"{where} whole numbers, at least one, for user {user}")
    if PARTITIONS.row(name).shared:
        return dealt
    every = np.concatenate(dealt)
    if every.min() < 0 or every.max() >= len(pool):
        raise ConfigError(f"{where} numbers of points from 0 to {len(pool) - 1}")
    if len(np.unique(every)) < len(every):
        raise ConfigError(f"{where} every point at one user, and some are at two")
    return [np.sort(rows).astype(np.int64) for rows in dealt]


class Partitioned(Source):
    """Users with points of their own, to train on and for a test set.

    No two share a point, but where the partition says so. Of the points that fall to user n, in an
    order of its own, ``test-share`` (rounded, but never all) are its test set, without label noise;
    of the others it trains on all, or on the first ``points-per-user``. So its test set does not
    depend on how many points it trains on. Where user n is the n-th owner, and the data say whose
    each point of their test set is, its part of that is its test set.

    Parameters
    ----------
    pool : Pool
        The points that were dealt.
    dealt : sequence
        The numbers of each user's points.
    settings : RunSettings
        Of the run.

    Notes
    -----
    Datasets that no user holds, by which an attacker guesses at the others', have ids past the
    last user: N + n has as many points of each class as user n, drawn anew from the whole pool.
    """

    def __init__(self, pool: Pool, dealt: Dealt, settings: RunSettings) -> None:
        source = pool.source
        self._source, self._pool, self._settings = source, pool, settings
        self.inputs, self.outputs, self.loss = source.inputs, source.outputs, source.loss
        self.bias, self.key, self.owners = source.bias, source.key, source.owners
        self.shape = source.shape
        by_owner = PARTITIONS.row(settings.partition).by_owner
        self.names = pool.names[: len(dealt)] if by_owner else ()
        self._given = bool(by_owner and source.test_owners) and settings.test_share != 0
        if self._given and settings.test_share != "auto":
            right = "auto, or 0, for data whose users come with test sets of their own"
            raise ConfigError(f"test-share = {settings.test_share:g}: expected {right}")
        self._share = 0.0 if self._given else settings.tested_share()
        self.users, self.tested = len(dealt), self._given or self._share > 0
        self._dealt = dealt
        self._asked = settings.points_asked()
        self._split: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def labels(self) -> NDArray[Any]:
        """Labels of all points that were there to be dealt, ``(n,)``, without noise."""
        return self._pool.labels

    def split(self, user: int) -> tuple[Tensor, Tensor]:
        """Return the numbers of the points that a user trains on, and is tested on."""
        if user not in self._split:
            fallen = self._fallen(user)
            draw = generator(self._settings.seed, "own points", user)
            order = torch.from_numpy(fallen)[torch.randperm(len(fallen), generator=draw)]
            train, tests = self._sizes(user)
            self._split[user] = order[tests : tests + train], order[:tests]
        return self._split[user]

    def _sizes(self, user: int) -> tuple[int, int]:
        """Return the lengths of a user's split, which is not made: of all users it is long."""
        fallen = len(self._dealt[user % self.users])
        tests = min(fallen - 1, round(self._share * fallen))
        asked = self._asked[min(user, len(self._asked) - 1)] if self._asked else fallen
        return min(asked, fallen - tests), tests

    def _fallen(self, user: int) -> Rows:
        """Return what fell to a user, or what is like that."""
        if user < self.users:
            return self._dealt[user]
        like, labels = self._dealt[(user - self.users) % self.users], self._pool.labels
        if self.loss == "least-squares":
            labels = np.zeros(len(labels), dtype=np.int64)
        draw = np.random.default_rng(seed_of(self._settings.seed, "guess", user))
        kinds, counts = np.unique(labels[like], return_counts=True)
        return np.concatenate(
            [
                draw.choice(np.flatnonzero(labels == kind), count, replace=False)
                for kind, count in zip(kinds, counts, strict=True)
            ]
        )

    def size(self, user: int) -> int:
        """Return how many points a user has to train on."""
        return self._sizes(user)[0]

    def own_tests(self, user: int) -> UserData | None:
        """Return a user's own test set, without label noise; None if it has too few points."""
        if self._given:
            tests = self._given_tests.get(self.names[user])
            if tests is None:
                return None
            features, labels = self._source.test_set()
            return UserData(features[tests], labels[tests])
        rows = self.split(user)[1]
        return self._source.take(rows, clean=True) if len(rows) else None

    @cached_property
    def _given_tests(self) -> dict[str | int, Tensor]:
        owners = np.asarray(self._source.test_owners)
        names, order = np.unique(owners), np.argsort(owners, kind="stable")
        parts = np.split(order, np.searchsorted(owners[order], names)[1:])
        return dict(zip(names.tolist(), map(torch.from_numpy, parts), strict=True))

    def tests(self, user: int) -> int:
        """Return how many points a user has for a test set of its own."""
        if self._given:
            return len(self._given_tests.get(self.names[user], ()))
        return self._sizes(user)[1]

    def draw(self, user: int, points: int, seed: int) -> UserData:
        """Return the first of the user's own points; the seed is the run's, as the partition is."""
        return self._source.take(self.split(user)[0][:points])

    def draw_many(self, users: Sequence[int], points: int, seed: int) -> UserData:
        """Return the same for several users, who have so many points each."""
        rows = torch.stack([self.split(user)[0][:points] for user in users])
        data = self._source.take(rows.flatten())
        return UserData(data.features.view(*rows.shape, self.inputs), data.labels.view(rows.shape))

    def shared(self, points: int, draw: torch.Generator) -> UserData:
        """Return points, without label noise, drawn from all that users train on.

        What a server has that asked its users for some: no user loses a point by it.

        Raises
        ------
        DataError
            If there are not so many.
        """
        held = torch.cat([self.split(user)[0] for user in range(self.users)])
        rows = torch.from_numpy(np.unique(held.numpy()))
        if points > len(rows):
            raise DataError(f"points = {points}: expected <= {len(rows)}, which users train on")
        return self._source.take(
            rows[torch.randperm(len(rows), generator=draw)[:points]], clean=True
        )

    def test_set(self) -> tuple[Tensor, Tensor]:
        """Return the common test set, which is no user's."""
        return self._source.test_set()

    def training_set(self) -> tuple[Tensor, Tensor]:
        """Return all points that were there to be dealt: what an attacker may learn from."""
        return self._source.training_set()

    def stored(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return training and common test set as they are kept."""
        return self._source.stored()

    @property
    def stored_inputs(self) -> int:
        """How many features are kept of a point."""
        return self._source.stored_inputs

    @cached_property
    def left_out(self) -> Sequence[LeftOut]:  # type: ignore[override]
        """What the source left out, points that are nobody's, and users with fewer than asked."""
        found = list(self._source.left_out)
        shared = PARTITIONS.row(self._settings.partition).shared
        owned = max(map(len, self._dealt)) if shared else sum(map(len, self._dealt))
        if nobodys := len(self._source.stored()["training"][1]) - owned:
            where = f"partition = {self._settings.partition}"
            what = "training points that fell to no user"
            found.append(LeftOut(what=what, count=nobodys, where=where))
        asked = self._asked
        fewer = [f"user {n}" for n, most in enumerate(asked) if self.size(n) < most]
        untested = [f"user {n}" for n in range(self.users) if not self.tests(n)]
        if fewer:
            found.append(LeftOut.of("users with fewer training points than points-per-user", fewer))
        if untested and self.tested:
            found.append(LeftOut.of("users with too few points for a test set", untested))
        return found
