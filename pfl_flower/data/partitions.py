"""Who holds which points: from a pool of points to the numbers of those that fall to each user.

``dirichlet``, ``classes``, ``shards`` and ``natural`` are Flower's own partitioners
(``flwr_datasets``), told our seed; it takes seconds to import and is imported when it is asked for.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pfl_flower.data.rehearsal import Rehearsal
from pfl_flower.data.sources import Source
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.seeding import seed_of

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

Rows = NDArray[np.int64]
"""Numbers of points."""
Dealt = Sequence[Rows]
"""For each user the numbers of its points."""
CLASS, ROW, OWNER = "class", "row", "owner"


@dataclass(frozen=True)
class Pool:
    """The training points that are to be dealt, and among how many users.

    Attributes
    ----------
    source : Source
        Where the points are stored.
    users : int
        Number N of users.
    seed : int
        Of whatever a partition draws.
    """

    source: Source
    users: int
    seed: int

    @cached_property
    def labels(self) -> NDArray[Any]:
        """Labels ``(n,)`` as they are stored, without noise."""
        return np.asarray(self.source.stored()["training"][1].numpy())

    @property
    def owners(self) -> NDArray[Any] | None:
        """Whose each point is, ``(n,)``; None where nobody says."""
        return None if self.source.owners is None else np.asarray(self.source.owners)

    @cached_property
    def names(self) -> tuple[int, ...] | tuple[str, ...]:
        """The owners, in the order of their names; none where nobody says."""
        return () if self.owners is None else tuple(np.unique(self.owners).tolist())

    def __len__(self) -> int:
        """Return the number n of points."""
        return len(self.labels)

    def partitioned(self, partitioner: Partitioner, column: str = CLASS) -> list[Rows]:
        """Return what one of Flower's partitioners makes of the pool."""
        values = self.owners if column == OWNER else self.labels
        assert values is not None
        partitioner.dataset = _numbered(column, values, np.arange(len(self)))
        # Of points beyond the users that are asked for, and of tries that failed, others speak.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return [np.asarray(partitioner.load_partition(user)) for user in range(self.users)]


def _numbered(column: str, values: NDArray[Any], rows: Rows) -> Any:
    """Return a data set that answers a choice of rows with their numbers.

    Flower's partitioners answer with data sets: made one by one, those of 10,000 users take 20 s.
    """
    from datasets import Dataset

    class Numbered(Dataset):  # type: ignore[misc]
        def select(self, indices: Sequence[int], **_: object) -> Rows:
            return rows[np.asarray(indices, dtype=np.int64)]

        def sort(self, *_: object, **__: object) -> Dataset:
            order = np.argsort(values, kind="stable")
            return _numbered(column, values[order], rows[order])

    return Numbered.from_dict({column: values})


def draws(pool: Pool) -> None:
    """Return nothing: no point is anybody's, every user draws from all of them."""


def whole(pool: Pool) -> Dealt:
    """Give every user all points: what its machine reads, which may have a file of its own."""
    return [np.arange(len(pool), dtype=np.int64)] * pool.users


def dirichlet(pool: Pool, *, alpha: float, min_points: int) -> Dealt:
    """Deal each class by shares from Dirichlet(alpha), again until every user has points enough.

    (Yurochkin et al., *Bayesian nonparametric federated learning of neural networks*, 2019.)

    Raises
    ------
    ConfigError
        If so many points for each are more than there are, or do not come about in 11 tries, which
        for many users take half a minute: so it is rehearsed whether they can.
    """
    most = len(pool) // pool.users
    if min_points > most:
        raise ConfigError(
            f"partition-min-points = {min_points}: expected at most {most}, "
            f"for {pool.users:,} users of {len(pool):,} points"
        )
    counts = np.unique(pool.labels, return_counts=True)[1]
    rehearsal = Rehearsal(counts, pool.users, min_points, pool.seed)
    if rehearsal.hopeless(alpha):
        raise rehearsal.refusal(alpha)
    from flwr_datasets.partitioner import DirichletPartitioner

    made = DirichletPartitioner(
        pool.users, CLASS, alpha, min_partition_size=min_points, seed=pool.seed
    )
    try:
        return pool.partitioned(made)
    except ValueError:
        raise rehearsal.refusal(alpha) from None


def classes(pool: Pool, *, classes: int) -> Dealt:
    """Give user n points of some classes: class n mod c, others at random; evenly in each class.

    (Li, Diao, Chen, He, *Federated learning on non-IID data silos*, 2022.)

    Raises
    ------
    ConfigError
        If there are not so many classes, or a class has fewer points than users.
    """
    known = np.unique(pool.labels)
    if classes > len(known):
        right = f"at most {len(known)}, the classes that there are"
        raise ConfigError(f"partition-classes = {classes}: expected {right}")
    from flwr_datasets.partitioner import PathologicalPartitioner

    made = PathologicalPartitioner(
        pool.users, CLASS, classes, class_assignment_mode="first-deterministic", seed=pool.seed
    )
    try:
        return pool.partitioned(made)
    except ValueError:
        raise ConfigError(
            f"partition-classes = {classes}: expected fewer, or fewer users than {pool.users:,}; "
            "a class has fewer points than users who are to have some"
        ) from None


def shards(pool: Pool, *, shards: int) -> Dealt:
    """Sort by class, cut into N ``shards`` equal pieces, give each user so many at random.

    The points that no whole number of pieces holds are nobody's. (McMahan et al.,
    *Communication-efficient learning of deep networks from decentralized data*, 2017.)

    Raises
    ------
    ConfigError
        If there are fewer points than shards.
    """
    if shards * pool.users > len(pool):
        most = len(pool) // pool.users
        right = f"at most {most}, for {pool.users:,} users of {len(pool):,} points"
        raise ConfigError(f"partition-shards = {shards}: expected {right}")
    from flwr_datasets.partitioner import ShardPartitioner

    made = ShardPartitioner(pool.users, CLASS, num_shards_per_partition=shards, seed=pool.seed)
    return pool.partitioned(made)


def natural(pool: Pool) -> Dealt:
    """Give user n the points of the n-th owner, in the order of their names.

    Raises
    ------
    ConfigError
        If the data do not say whose a point is, or there are fewer owners than users.
    """
    if pool.owners is None:
        raise ConfigError("partition = natural: expected data that say whose a point is")
    if pool.users > len(pool.names):
        right = f"at most {len(pool.names)}, whose points there are"
        raise ConfigError(f"users = {pool.users}: expected {right}")
    from flwr_datasets.partitioner import NaturalIdPartitioner

    return pool.partitioned(NaturalIdPartitioner(OWNER), OWNER)


def similarity(pool: Pool, *, share: float) -> Dealt:
    """Deal a fraction of the points evenly, and the rest sorted by class, as many to each user.

    (Karimireddy et al., *SCAFFOLD: stochastic controlled averaging for federated learning*, 2020.)
    """
    draw = np.random.default_rng(seed_of(pool.seed, "similarity"))
    order = draw.permutation(len(pool))
    alike = round(share * len(order))
    rest = order[alike:]
    rest = rest[np.argsort(pool.labels[rest], kind="stable")]
    even = np.array_split(order[:alike], pool.users)
    # The odd ones of each part go to opposite ends: nobody has two points more than another.
    sizes = [len(one) for one in np.array_split(rest, pool.users)][::-1]
    apart = np.split(rest, np.cumsum(sizes)[:-1])
    dealt = [np.concatenate(pair) for pair in zip(even, apart, strict=True)]
    return [dealt[place] for place in draw.permutation(pool.users)]
