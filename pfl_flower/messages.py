"""The only place where tensors become Flower records and back; replies are not trusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from pfl_flower.aggregation import Reason, Report, ReportError

ROLES = ("auto", "honest", "strategic")
ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
RHO, HONEST_SUM, GRADIENTS = "rho", "honest-sum", "gradients"
HEADER_BYTES = 4096
"""Room for the header of a serialised array."""


@dataclass(frozen=True)
class Session:
    """One start of the server, of which a run that is resumed has several.

    Attributes
    ----------
    name : str
        Different for every start; empty if the run keeps no checkpoints, nor clients their memory.
    resumed : int
        The round it goes on from: what clients did after it in an earlier session never happened.
    committed : int
        The round of the last checkpoint: clients keep what they need to go back to it.
    """

    name: str = ""
    resumed: int = 0
    committed: int = 0


@dataclass(frozen=True, kw_only=True)
class Broadcast:
    """What the server tells a node in a round.

    Attributes
    ----------
    round : int
        t, from 1.
    users : tuple of int
        Ids of the users that the node acts for, ascending.
    last_accepted : tuple of int
        For each of them the round of its last accepted report, 0 if there is none.
    rho : Tensor
        rho_t, ``(d,)``.
    eta, eta_sum : float
        eta_t, and the sum of the step sizes of the rounds before t.
    honest_sum : Tensor or None
        Sum of the honest gradients of round t - 1, ``(d,)``; in the ``oracle`` protocol only.
    session : Session
        Which start of the server this is, and which round clients may have to go back to.
    """

    round: int
    users: tuple[int, ...]
    last_accepted: tuple[int, ...]
    rho: Tensor
    eta: float
    eta_sum: float
    honest_sum: Tensor | None = None
    session: Session = Session()


def to_array(tensor: Tensor) -> Array:
    """Return Flower's form of a tensor."""
    return Array(tensor.detach().cpu().numpy())


def to_tensor(array: Array) -> Tensor:
    """Return the tensor of a trusted array, with memory of its own."""
    return torch.from_numpy(array.numpy())


def pack_rho(rho: Tensor) -> ArrayRecord:
    """Return the record in which a strategy passes rho from round to round."""
    return ArrayRecord({RHO: to_array(rho)})


def unpack_rho(record: ArrayRecord) -> Tensor:
    """Return rho, ``(d,)``."""
    return to_tensor(record[RHO])


def pack_broadcast(broadcast: Broadcast, arrays: ArrayRecord) -> RecordDict:
    """Return the content of a training message; ``arrays`` is rho packed once for all nodes."""
    config = ConfigRecord(
        {
            "round": broadcast.round,
            "users": list(broadcast.users),
            "last-accepted": list(broadcast.last_accepted),
            "eta": broadcast.eta,
            "eta-sum": broadcast.eta_sum,
            "session": broadcast.session.name,
            "resumed": broadcast.session.resumed,
            "committed": broadcast.session.committed,
        }
    )
    content = ArrayRecord({RHO: arrays[RHO]})
    if broadcast.honest_sum is not None:
        content[HONEST_SUM] = to_array(broadcast.honest_sum)
    return RecordDict({ARRAYS: content, CONFIG: config})


def unpack_broadcast(content: RecordDict, device: torch.device) -> Broadcast:
    """Return the broadcast in a training message, on the device of the node's users."""
    arrays, config = content.array_records[ARRAYS], content.config_records[CONFIG]
    honest = arrays.get(HONEST_SUM)
    return Broadcast(
        round=_integer(config, "round"),
        users=_integers(config, "users"),
        last_accepted=_integers(config, "last-accepted"),
        rho=to_tensor(arrays[RHO]).to(device),
        eta=float(config["eta"]),  # type: ignore[arg-type]
        eta_sum=float(config["eta-sum"]),  # type: ignore[arg-type]
        honest_sum=None if honest is None else to_tensor(honest).to(device),
        session=Session(
            str(config["session"]), _integer(config, "resumed"), _integer(config, "committed")
        ),
    )


def pack_request(round: int, users: tuple[int, ...]) -> RecordDict:
    """Return the content of an evaluation message."""
    return RecordDict({CONFIG: ConfigRecord({"round": round, "users": list(users)})})


def unpack_request(content: RecordDict) -> tuple[int, tuple[int, ...]]:
    """Return the round and the users of an evaluation message."""
    config = content.config_records[CONFIG]
    return _integer(config, "round"), _integers(config, "users")


@dataclass(frozen=True)
class Introduction:
    """What a node says of itself: its role, and the users whose memory it has on its disk."""

    role: str = "auto"
    holds: frozenset[int] = frozenset()


def pack_introduction(said: Introduction) -> RecordDict:
    """Return the content of a node's introduction."""
    return RecordDict({CONFIG: ConfigRecord({"role": said.role, "holds": sorted(said.holds)})})


def unpack_introduction(content: RecordDict) -> Introduction:
    """Return what a node that is not trusted says of itself; what is missing is left out."""
    config = content.config_records.get(CONFIG, ConfigRecord())
    holds = config.get("holds")
    users = [user for user in holds if isinstance(user, int)] if isinstance(holds, list) else []
    return Introduction(str(config.get("role", "auto")), frozenset(users))


@dataclass(frozen=True)
class NodeMetrics:
    """What a node says of its own work; never used in the mathematics.

    Attributes
    ----------
    worst_residual, unconverged
        Of its local solves: the largest residual, and how many missed their tolerance.
    accuracies : dict
        Of its honest users' local models, by user.
    poisoned_points, poisoned_labels, poisoned_residual
        Of fabricated data: distinct queries, total label weight, the largest residual of their aim.
    """

    worst_residual: float = 0.0
    unconverged: int = 0
    accuracies: Mapping[int, float] = field(default_factory=dict)
    poisoned_points: int = 0
    poisoned_labels: float = 0.0
    poisoned_residual: float = 0.0

    @classmethod
    def merge(cls, several: Iterable[NodeMetrics]) -> NodeMetrics:
        """Return the largest residuals, the sums of counts, and all accuracies."""
        known = list(several)
        return cls(
            max((metrics.worst_residual for metrics in known), default=0.0),
            sum(metrics.unconverged for metrics in known),
            {user: value for metrics in known for user, value in metrics.accuracies.items()},
            sum(metrics.poisoned_points for metrics in known),
            sum(metrics.poisoned_labels for metrics in known),
            max((metrics.poisoned_residual for metrics in known), default=0.0),
        )

    def pack(self) -> MetricRecord:
        """Return Flower's form."""
        values: dict[str, int | float | list[float] | list[int]] = {
            "worst-residual": self.worst_residual,
            "unconverged": self.unconverged,
        }
        if self.accuracies:
            values["accuracies"] = list(self.accuracies.values())
            values["accuracy-users"] = list(self.accuracies)
        if self.poisoned_points:
            values["poisoned-points"] = self.poisoned_points
            values["poisoned-labels"] = self.poisoned_labels
            values["poisoned-residual"] = self.poisoned_residual
        return MetricRecord(values)

    @classmethod
    def unpack(cls, content: RecordDict) -> NodeMetrics:
        """Return the metrics of a reply, with what is missing or absurd left at its default."""
        record = content.metric_records.get(METRICS, MetricRecord())
        return cls(
            _amount(record.get("worst-residual")),
            _count(record.get("unconverged")),
            _accuracies(record.get("accuracy-users"), record.get("accuracies")),
            _count(record.get("poisoned-points")),
            _amount(record.get("poisoned-labels")),
            _amount(record.get("poisoned-residual")),
        )


def _amount(value: object) -> float:
    return float(value) if isinstance(value, int | float) and value >= 0 else 0.0


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


def _accuracies(users: object, values: object) -> dict[int, float]:
    if not isinstance(users, list) or not isinstance(values, list) or len(users) != len(values):
        return {}
    pairs = zip(users, values, strict=True)
    return {user: float(a) for user, a in pairs if isinstance(user, int) and 0 <= a <= 1}


def pack_report(report: Report, metrics: NodeMetrics) -> RecordDict:
    """Return the content of a training reply."""
    return RecordDict(
        {
            ARRAYS: ArrayRecord({GRADIENTS: to_array(report.gradients)}),
            CONFIG: ConfigRecord({"round": report.round, "users": list(report.users)}),
            METRICS: metrics.pack(),
        }
    )


def unpack_report(content: RecordDict, *, max_bytes: int) -> Report:
    """Return the report in a training reply from a node that is not trusted.

    Raises
    ------
    ReportError
        If records or arrays are missing, superfluous, larger than ``max_bytes``, or not what they
        say they are.
    """
    arrays, config = content.array_records.get(ARRAYS), content.config_records.get(CONFIG)
    if arrays is None or config is None or set(arrays) != {GRADIENTS}:
        found = sorted(arrays) if arrays is not None else []
        raise ReportError(Reason.MISSING_ARRAYS, f"arrays {found[:4]}: expected ['{GRADIENTS}']")
    array = arrays[GRADIENTS]
    if len(array.data) > max_bytes + HEADER_BYTES:
        raise ReportError(Reason.TOO_LARGE, f"{len(array.data)} bytes: expected <= {max_bytes}")
    try:
        gradients = _decode(array)
        users, round = _integers(config, "users"), _integer(config, "round")
    except (ValueError, TypeError, KeyError, OverflowError, EOFError, MemoryError) as error:
        raise ReportError(Reason.MALFORMED, f"{type(error).__name__}: {error}") from None
    return Report(round=round, users=users, gradients=gradients)


def _decode(array: Array) -> Tensor:
    values = array.numpy()
    if not isinstance(values, np.ndarray) or values.nbytes > len(array.data):
        raise ValueError("the array does not match its header")
    return torch.from_numpy(np.ascontiguousarray(values))


def _integer(config: ConfigRecord, key: str) -> int:
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{key} is {type(value).__name__}: expected an integer")
    return value


def _integers(config: ConfigRecord, key: str) -> tuple[int, ...]:
    values = config[key]
    if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
        raise TypeError(f"{key} is {type(values).__name__}: expected a list of integers")
    return tuple(int(value) for value in values)
