"""How well users are served: their own models, the global one and one learned alone, by users.

Each is judged on its user's own test set, which nobody trains on: classifiers by accuracy,
regression by the mean squared error, which one point has as well; R2 needs points that differ.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pfl_flower.run.triggered import Triggered
from pfl_flower.support.foreign_text import cell

USERS_FILE = "users.csv"
HEADING = ("user", "role", "train", "tests", "measure", "theta", "rho", "alone")
TRIGGERED = ("triggered_theta", "triggered_rho")
"""Columns of a run whose attack has a trigger."""
MODELS = ("theta", "rho", "alone")
"""A user's model in the run, the global model, and the user's own minimiser without the others."""
TAIL = 0.1
"""The share of users whom the tail of a metric is about: those who are served worst."""


@dataclass(frozen=True)
class Served:
    """What three models come to on a user's own test set.

    Attributes
    ----------
    train, tests : int
        Points that it trains on, and that it is tested on.
    theta, rho : float
        Of its model theta_n, and of rho.
    alone : float or None
        Of what it would learn by itself, ``argmin L_n``; None where that is not known.
    """

    train: int
    tests: int
    theta: float
    rho: float
    alone: float | None = None


@dataclass(frozen=True)
class Measure:
    """What is told of a model: its name, and whether more of it is better.

    Attributes
    ----------
    name : str
        In words.
    gain : float
        1 where more is better, -1 where less is.
    most : float
        The largest that a node may say.
    """

    name: str
    gain: float
    most: float

    @classmethod
    def of(cls, loss: str) -> Measure:
        """Return the measure of a loss: accuracy, or the mean squared error of regression."""
        if loss == "least-squares":
            return cls("mean squared error", -1.0, 1e30)
        return cls("accuracy", 1.0, 1.0)

    def summary(self, values: Sequence[float]) -> dict[str, float]:
        """Return mean, worst, tail (the value at which a tenth is worse) and deviation.

        >>> Measure.of("softmax").summary([0.0, 0.5, 1.0])["worst"]
        0.0
        """
        worst = min if self.gain > 0 else max
        tail = TAIL if self.gain > 0 else 1 - TAIL
        return {
            "mean": statistics.fmean(values),
            "worst": worst(values),
            "tail": _quantile(sorted(values), tail),
            "std": statistics.pstdev(values),
        }


def _quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of sorted values lies, between neighbours linearly.

    >>> _quantile([0.0, 1.0, 4.0], 0.75)
    2.5
    """
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def columns() -> tuple[str, ...]:
    """Return the columns that own test sets add to ``rounds.csv``."""
    each = [f"own_{model}_{part}" for model in MODELS for part in ("mean", "worst", "tail", "std")]
    return (*each, "own_gain_over_rho", "own_gain_over_alone", "own_better_than_alone")


def metrics(served: Mapping[int, Served], measure: Measure) -> dict[str, float]:
    """Return what is told of all users of a round; gains are positive where theta_n is better."""
    if not served:
        return {}
    users = [served[user] for user in sorted(served)]
    found: dict[str, float] = {}
    for name in MODELS:
        values = [value for user in users if (value := getattr(user, name)) is not None]
        if values:
            said = measure.summary(values)
            found |= {f"own_{name}_{part}": value for part, value in said.items()}
    over_rho = [measure.gain * (user.theta - user.rho) for user in users]
    found["own_gain_over_rho"] = statistics.fmean(over_rho)
    gains = [measure.gain * (u.theta - u.alone) for u in users if u.alone is not None]
    if gains:
        found["own_gain_over_alone"] = statistics.fmean(gains)
        found["own_better_than_alone"] = sum(gain > 0 for gain in gains) / len(gains)
    return found


def users_text(
    served: Mapping[int, Served],
    measure: Measure,
    *,
    users: int,
    strategic: frozenset[int],
    sizes: Callable[[int], tuple[int, int] | None],
    names: Sequence[int] | Sequence[str] = (),
    triggered: Mapping[int, Triggered] | None = None,
) -> str:
    """Return the content of ``users.csv``: one row for each user; what is not known is empty.

    Parameters
    ----------
    served : mapping
        What was measured, by user: honest users with test sets, on nodes that answered.
    measure : Measure
        Of what.
    users : int
        Number N of users.
    strategic : frozenset of int
        Users who act strategically, of whom nothing is measured.
    sizes : callable
        From a user who was not measured to the points that it trains and is tested on; to None
        where its points are on a node alone.
    names : sequence
        Whose points each user has, for a column ``owner``; empty where nobody says.
    triggered : mapping, optional
        What a trigger does to users' models, by user, for columns of their own.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    more = TRIGGERED if triggered is not None else ()
    writer.writerow([*HEADING, *more, *(["owner"] if names else [])])
    for user in range(users):
        role = "strategic" if user in strategic else "honest"
        known, led = served.get(user), (triggered or {}).get(user)
        last: list[int | str] = (
            [repr(led.theta), repr(led.rho)] if led is not None else [""] * len(more)
        )
        last += [_cell(names[user])] if names else []
        if known is None:
            writer.writerow(
                [user, role, *(sizes(user) or ("", "")), measure.name, "", "", "", *last]
            )
            continue
        alone = "" if known.alone is None else repr(known.alone)
        values = (repr(known.theta), repr(known.rho), alone)
        writer.writerow([user, role, known.train, known.tests, measure.name, *values, *last])
    return buffer.getvalue()


def _cell(name: int | str) -> int | str:
    return name if isinstance(name, int) else cell(name)
