"""What nodes say of their own work, as a Flower record; it is not trusted, nor computed with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import MetricRecord, RecordDict

from pfl_flower.run.served import Served
from pfl_flower.run.triggered import Triggered
from pfl_flower.transport.served_users import (
    SERVED_KEYS,
    numbers,
    packed_served,
    plausible_list,
    served_users,
)
from pfl_flower.transport.triggered_users import (
    TRIGGERED_KEYS,
    packed_triggered,
    plausible_triggered,
    triggered_users,
)
from pfl_flower.transport.wire import filled, find

METRICS = "metrics"


@dataclass(frozen=True)
class NodeMetrics:
    """What a node says of its own work; never used in the mathematics.

    Attributes
    ----------
    worst_residual, unconverged
        The largest first-order residual of its local problems, of local steps' before the last;
        and how many exact solves missed their tolerance.
    accuracies : dict
        Of its honest users' local models on the common test set, by user.
    served : dict
        What models come to on its honest users' own test sets, by user.
    triggered : dict
        What a trigger does to its honest users' models, by user.
    poisoned_points, poisoned_labels, poisoned_residual
        Of fabricated data: distinct queries, total label weight, the largest residual of their aim.
    memory : dict
        Of users for whom the node acts anew, the round of the memory that it took up; 0 for none.
    unkept
        Whether it could not write to its disk what its users remember; of several nodes, how many.
    absurd
        Entries that the server left out.
    """

    worst_residual: float = 0.0
    unconverged: int = 0
    accuracies: Mapping[int, float] = field(default_factory=dict)
    poisoned_points: int = 0
    poisoned_labels: float = 0.0
    poisoned_residual: float = 0.0
    memory: Mapping[int, int] = field(default_factory=dict)
    unkept: int = 0
    absurd: int = 0
    served: Mapping[int, Served] = field(default_factory=dict)
    triggered: Mapping[int, Triggered] = field(default_factory=dict)

    @classmethod
    def merge(cls, several: Iterable[NodeMetrics]) -> NodeMetrics:
        """Return the largest residuals, the sums of counts, and all accuracies."""
        known = list(several)
        if len(known) == 1:
            return known[0]
        return cls(
            max((metrics.worst_residual for metrics in known), default=0.0),
            sum(metrics.unconverged for metrics in known),
            {user: value for metrics in known for user, value in metrics.accuracies.items()},
            sum(metrics.poisoned_points for metrics in known),
            sum(metrics.poisoned_labels for metrics in known),
            max((metrics.poisoned_residual for metrics in known), default=0.0),
            {user: round for metrics in known for user, round in metrics.memory.items()},
            sum(metrics.unkept for metrics in known),
            sum(metrics.absurd for metrics in known),
            {user: value for metrics in known for user, value in metrics.served.items()},
            {user: value for metrics in known for user, value in metrics.triggered.items()},
        )

    def pack(self) -> MetricRecord:
        """Return Flower's form."""
        values: dict[str, int | float | list[float] | list[int]] = {
            "worst-residual": _at_most(self.worst_residual),
            "unconverged": self.unconverged,
        }
        if self.accuracies:
            values["accuracies"] = list(self.accuracies.values())
            values["accuracy-users"] = list(self.accuracies)
        if self.served:
            values |= packed_served(self.served)
        if self.triggered:
            values |= packed_triggered(self.triggered)
        if self.poisoned_points:
            values["poisoned-points"] = self.poisoned_points
            values["poisoned-labels"] = self.poisoned_labels
            values["poisoned-residual"] = _at_most(self.poisoned_residual)
        if self.memory:
            values["memory-rounds"] = list(self.memory.values())
            values["memory-users"] = list(self.memory)
        if self.unkept:
            values["unkept"] = self.unkept
        return filled(MetricRecord, values)

    @classmethod
    def unpack(
        cls,
        content: RecordDict,
        users: Collection[int],
        most: float = 1.0,
        *,
        measured: Collection[int] | None = None,
    ) -> NodeMetrics:
        """Return the metrics of a reply on ``users``; what is absurd is left out and counted.

        ``most`` is the largest value on own test sets: 1 for accuracies. ``measured`` are those
        whose accuracies were asked for; left out, all of them.
        """
        record = find(content, METRICS, MetricRecord) or MetricRecord()
        known: dict[str, Any] = {
            key: value for key, value in record.items() if _plausible(key, value, len(users))
        }
        rated = users if measured is None else measured
        accuracies, others = _by_user(known, "accuracy-users", "accuracies", rated)
        memory, strangers = _by_user(known, "memory-users", "memory-rounds", users)
        served, refused = served_users(known, users, most)
        triggered, others_led = triggered_users(known, users)
        return cls(
            float(known.get("worst-residual", 0.0)),
            int(known.get("unconverged", 0)),
            {user: float(value) for user, value in accuracies.items()},
            int(known.get("poisoned-points", 0)),
            float(known.get("poisoned-labels", 0.0)),
            float(known.get("poisoned-residual", 0.0)),
            memory,
            int(known.get("unkept", 0)),
            len(record) - len(known) + others + strangers + refused + others_led,
            served,
            triggered,
        )


def speaks_of_accuracies(content: RecordDict) -> bool:
    """Return whether a reply says how good local models are, well or not."""
    record = find(content, METRICS, MetricRecord)
    return record is not None and "accuracies" in record


def _by_user(
    known: Mapping[str, Any], ids: str, numbers: str, users: Collection[int]
) -> tuple[dict[int, Any], int]:
    """Return one number for each user in a list beside the numbers, and how many are nobody's."""
    said, values = known.get(ids, []), known.get(numbers, [])
    asked = frozenset(users) if said else frozenset()
    found = {user: value for user, value in zip(said, values, strict=False) if user in asked}
    return found, max(len(said), len(values)) - len(found)


COUNTS = ("poisoned-points",)
OF_USERS = {"unconverged": None, "unkept": 1}
"""Counts that are not more than the users of a reply, or than this."""
AMOUNTS = ("worst-residual", "poisoned-labels", "poisoned-residual")
LARGEST = 1e30
"""Of an amount that a node may speak of, and means "or more"; sums of many stay finite."""


def _at_most(amount: float) -> float:
    """Return an amount of one's own as a server will hear it: a missed solve's may be infinite."""
    return min(amount, LARGEST)


def _plausible(key: str, value: object, users: int) -> bool:
    """Whether a node that is not trusted may say this; NaN is not less than anything."""
    if key in COUNTS:
        return isinstance(value, int) and 0 <= value < 2**31
    if key in OF_USERS:
        most = OF_USERS[key] or users
        return isinstance(value, int) and 0 <= value <= most
    if key in AMOUNTS:
        return isinstance(value, int | float) and 0 <= value <= LARGEST
    if key == "accuracies":
        return numbers(value, 1)
    if key == "memory-rounds":
        return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)
    if key in ("accuracy-users", "memory-users"):
        return isinstance(value, list) and all(isinstance(entry, int) for entry in value)
    if key in SERVED_KEYS:
        return plausible_list(key, value)
    if key in TRIGGERED_KEYS:
        return plausible_triggered(key, value)
    return False
