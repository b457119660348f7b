"""The memory that a run takes at the least, and whether this machine has it.

What is counted is what lies in memory at the same time whatever else a run does, so that a refusal
is never wrong; a run that is admitted can still need more, which is one line when it happens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from pfl_flower.data.table import PARTITIONS
from pfl_flower.objective.table import MODELS
from pfl_flower.run.settings import DRAWN, SIZE, Settings
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.hardware import memory_limit

GIB = 2**30
WIDTHS = {"float32": 4, "float64": 8}
ENTRY = 64
"""Bytes of a user's entry in the tables of who is where and has how many points."""
LINE = 200
"""Bytes of a line of ``rounds.csv``, which stay in memory as well."""
SYNTHETIC_POINTS = 6000
"""Points of the synthetic sets' training and test sets."""
COPIES = 4
"""How often points that a strategic user makes lie in memory: drawn, with the constant one, sorted
to be counted, and as its own."""
NODE = 4096
"""Bytes of what is kept of a virtual node."""
Where = Literal["anywhere", "server", "all"]


class Factor(NamedTuple):
    """A key of which there are so many of something, and how many there usually are."""

    key: str
    value: int
    usual: int


class Need(NamedTuple):
    """What takes memory: bytes of one, and the keys by which they multiply."""

    what: str
    unit: int
    factors: tuple[Factor, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all."""
        return self.unit * math.prod(factor.value for factor in self.factors)


def needs(
    config: Settings,
    *,
    inputs: int | None = None,
    outputs: int = 1,
    dim: int | None = None,
    where: Where = "anywhere",
) -> Iterator[Need]:
    """Yield what a run keeps in memory at the least.

    Parameters
    ----------
    config : Settings
        The run's.
    inputs, outputs, dim : int
        Of the data and the model, once they are known; the least that they can be before.
    where : {"anywhere", "server", "all"}
        What of the run is in this process: what every node needs as well, the server, or the nodes
        of all users too.
    """
    width, users = WIDTHS[config.dtype], Factor("users", config.users, 11)
    features = _features(config, inputs)
    model = _model(config, inputs, outputs, dim)
    rounds = Factor("rounds", config.rounds, 60)
    most, total = _points(config)
    yield Need("the table of users", ENTRY, (users,))
    yield Need("a user's points", width, (Factor("points-per-user", most, 500), *features))
    if config.synthetic:
        yield Need("the training and test set", width * SYNTHETIC_POINTS, features)
    if config.batch_size:
        yield Need("a batch", width, (Factor("batch-size", config.batch_size, 100), *features))
    yield Need("a model and its step", width * 2, model)
    if where == "anywhere":
        return
    yield Need("rounds.csv", LINE, (rounds,))
    yield Need("the reports of a round", width, (Factor("users", config.sample_size(), 11), *model))
    if config.save_trajectory:
        yield Need("the trajectory", width, (rounds, *model))
    if where == "all":
        held = min(config.chunk_users or config.users, config.users)
        mean = Factor("points-per-user", max(1, total // config.users), 500)
        yield Need("the users' points", width, (Factor("users", held, 11), mean, *features))
        yield Need("the users' models", width, (users, *model))


def check_memory(
    config: Settings,
    *,
    inputs: int | None = None,
    outputs: int = 1,
    dim: int | None = None,
    where: Where = "anywhere",
) -> None:
    """Refuse a run that this machine's memory cannot hold; see ``needs`` for the parameters.

    Raises
    ------
    ConfigError
        One line: the key that is largest for what is largest, and what of it would fit.
    """
    limit = memory_limit()
    if limit is None:
        return
    found = list(needs(config, inputs=inputs, outputs=outputs, dim=dim, where=where))
    total = sum(need.bytes for need in found)
    if total <= limit:
        return
    worst = max(found, key=lambda need: need.bytes)
    key, value, _ = max(worst.factors, key=lambda factor: factor.value / factor.usual)
    # All that grows with this key shrinks with it; the rest stays.
    grows = sum(need.bytes for need in found if key in {factor.key for factor in need.factors})
    most = value * max(0, limit - total + grows) // grows
    right = f"at most about {most:,}" if most else "less"
    raise ConfigError(
        f"{key} = {config.flat()[key]}: expected {right}: {worst.what} would take "
        f"{_shown(worst.bytes)}, and the memory of this machine is {_shown(limit)}"
    )


def check_shared(config: Settings, numbers: int) -> None:
    """Refuse users each of whom has all points, where this memory cannot hold them so often.

    Parameters
    ----------
    config : Settings
        The run's.
    numbers : int
        Entries of a user's points.

    Raises
    ------
    ConfigError
        With the most users that it holds.
    """
    limit, each = memory_limit(), WIDTHS[config.dtype] * numbers
    held = min(config.chunk_users or config.users, config.users)
    if limit is not None and held * each > limit:
        raise ConfigError(
            f"users = {config.users}: expected at most about {limit // each:,}, each of whom has "
            f"{_shown(each)} of points under partition = {config.partition}, or chunk-users"
        )


def check_nodes(key: str, nodes: int) -> None:
    """Refuse no virtual node, or more than the memory can keep account of.

    Raises
    ------
    ConfigError
        If it is so, with how many it can; the number of nodes is called ``key``.
    """
    if nodes < 1:
        raise ConfigError(f"{key} {nodes}: expected at least 1")
    limit = memory_limit()
    if limit is not None and nodes * NODE > limit:
        raise ConfigError(
            f"{key} {nodes}: expected at most {limit // NODE:,}, of which the memory of this "
            f"machine, {_shown(limit)}, can keep account"
        )


def check_rows(key: str, count: int, numbers: int) -> None:
    """Refuse as many points of a strategic user's making as the memory cannot hold.

    Parameters
    ----------
    key, count
        What says how many points there are.
    numbers
        Entries of a point, in float64.

    Raises
    ------
    ConfigError
        With the most that it holds.
    """
    limit = memory_limit()
    if limit is None:
        return
    most = limit // (COPIES * WIDTHS["float64"] * numbers)
    if count > most:
        raise ConfigError(
            f"{key} = {count}: expected at most {most:,}, which is what {limit / GIB:.0f} GiB "
            f"of memory hold where each has {numbers:,} numbers"
        )


def _points(config: Settings) -> tuple[int, int]:
    """Return the most points of a user, and all users' together; 1 each where a partition says."""
    # Under a partition a number is a limit, and a user may have fewer.
    dealt = bool(PARTITIONS.row(config.partition).reads)
    listed = "1" if dealt else config.points_per_user or DRAWN
    sizes = [int(size) for size in listed.split(",") if SIZE.fullmatch(size)]
    sizes = sizes[: config.users] or [1]
    return max(sizes), sum(sizes) + sizes[-1] * (config.users - len(sizes))


def _features(config: Settings, inputs: int | None) -> tuple[Factor, ...]:
    count = inputs or (config.features if config.synthetic else 1)
    return (Factor("features", count, 20),) if config.synthetic else (Factor("", count, count),)


def _model(
    config: Settings, inputs: int | None, outputs: int, dim: int | None
) -> tuple[Factor, ...]:
    """Return the factors of the number of parameters d."""
    (features,) = _features(config, inputs)
    if "hidden" in MODELS.row(config.model).reads:
        units = Factor("hidden", config.hidden, 784)
        return units, Factor("", features.value + outputs, features.value + outputs)
    if dim is None:
        # Of other models only the model itself, which is made later, can tell.
        dim = features.value * outputs if config.linear else 1
    return (Factor(features.key, dim, max(1, dim * features.usual // features.value)),)


def _shown(count: int) -> str:
    if count < GIB:
        return f"{count / 2**20:.0f} MiB"
    return f"{count / GIB:,.0f} GiB"
