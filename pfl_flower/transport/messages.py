"""What nodes and the server tell each other, as Flower records; replies are not trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from pfl_flower.aggregation.reports import Reason, Report, ReportError
from pfl_flower.transport.node_metrics import METRICS, NodeMetrics
from pfl_flower.transport.wire import filled, find, plain, to_array, to_record, to_tensor

ROLES = ("auto", "honest", "strategic")
ARRAYS, CONFIG = "arrays", "config"
RHO, HONEST_SUM, GRADIENTS = "rho", "honest-sum", "gradients"
FRAME_BYTES, USER_BYTES = 4096, 64
"""Room in a reply besides its numbers: for headers and names, and for what is said of each user."""
REMEMBERED_BYTES = 4096
"""Lists of users up to this size are read once and remembered."""


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
        Ids of the users that are asked, ascending.
    last_accepted : tuple of int
        For each of them the round of its last accepted report, 0 if there is none.
    rho : Tensor
        rho_t, ``(d,)``.
    eta, eta_sum : float
        eta_t, times N / users asked where a sample's sum is rescaled: what one report moves rho by;
        and the sum of these over the rounds before t.
    honest_sum : Tensor or None
        Sum of the honest gradients of round t - 1, ``(d,)``; in the ``oracle`` protocol only.
    members : tuple of int
        Ids of all users that the node acts for, ascending; those asked when left out.
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
    members: tuple[int, ...] = ()
    session: Session = Session()

    def __post_init__(self) -> None:
        """Take those asked for all."""
        if not self.members:
            object.__setattr__(self, "members", self.users)


def pack_rho(rho: Tensor) -> ArrayRecord:
    """Return the record in which a strategy passes rho from round to round."""
    return to_record({RHO: rho})


def unpack_rho(record: ArrayRecord) -> Tensor:
    """Return rho, ``(d,)``."""
    return to_tensor(record[RHO])


def pack_broadcast(broadcast: Broadcast, arrays: ArrayRecord) -> RecordDict:
    """Return the content of a training message; ``arrays`` is rho packed once for all nodes."""
    config = {
        "round": broadcast.round,
        "users": _packed(broadcast.users),
        "last-accepted": _packed(broadcast.last_accepted),
        "eta": broadcast.eta,
        "eta-sum": broadcast.eta_sum,
        "session": broadcast.session.name,
        "resumed": broadcast.session.resumed,
        "committed": broadcast.session.committed,
    }
    if broadcast.members != broadcast.users:
        config["members"] = _packed(broadcast.members)
    content = {RHO: arrays[RHO]}
    if broadcast.honest_sum is not None:
        content[HONEST_SUM] = to_array(broadcast.honest_sum)
    records = {ARRAYS: filled(ArrayRecord, content), CONFIG: filled(ConfigRecord, config)}
    return filled(RecordDict, records)


def unpack_broadcast(content: RecordDict, device: torch.device) -> Broadcast:
    """Return the broadcast in a training message, on the device of the node's users."""
    arrays, config = content[ARRAYS], content[CONFIG]
    if not isinstance(arrays, ArrayRecord) or not isinstance(config, ConfigRecord):
        raise TypeError(f"{ARRAYS}, {CONFIG}: expected an ArrayRecord and a ConfigRecord")
    honest = arrays.get(HONEST_SUM)
    return Broadcast(
        round=_integer(config, "round"),
        users=_integers(config, "users"),
        last_accepted=_integers(config, "last-accepted"),
        rho=to_tensor(arrays[RHO]).to(device),
        eta=float(config["eta"]),  # type: ignore[arg-type]
        eta_sum=float(config["eta-sum"]),  # type: ignore[arg-type]
        honest_sum=None if honest is None else to_tensor(honest).to(device),
        members=_integers(config, "members") if "members" in config else (),
        session=Session(
            str(config["session"]), _integer(config, "resumed"), _integer(config, "committed")
        ),
    )


def pack_request(round: int, users: tuple[int, ...]) -> RecordDict:
    """Return the content of an evaluation message."""
    return RecordDict({CONFIG: ConfigRecord({"round": round, "users": _packed(users)})})


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
    config = find(content, CONFIG, ConfigRecord) or ConfigRecord()
    holds = config.get("holds")
    users = [user for user in holds if isinstance(user, int)] if isinstance(holds, list) else []
    return Introduction(str(config.get("role", "auto")), frozenset(users))


def largest_reply(users: int, row_bytes: int) -> int:
    """Return the most bytes of a training reply: its rows, 64 for each user, and 4096.

    >>> largest_reply(users=2, row_bytes=80)
    4384
    """
    return users * (row_bytes + USER_BYTES) + FRAME_BYTES


def pack_report(report: Report, metrics: NodeMetrics) -> RecordDict:
    """Return the content of a training reply."""
    config = {"round": report.round, "users": _packed(report.users)}
    records = {
        ARRAYS: to_record({GRADIENTS: report.gradients}),
        CONFIG: filled(ConfigRecord, config),
        METRICS: metrics.pack(),
    }
    return filled(RecordDict, records)


def unpack_report(content: RecordDict, *, max_bytes: int) -> Report:
    """Return the report in a training reply from a node that is not trusted.

    Raises
    ------
    ReportError
        If the reply is larger than ``max_bytes``, if records or arrays are missing, superfluous, or
        not what they say they are.
    """
    size = sum(_bytes(value) for record in content.values() for value in record.values())
    if size > max_bytes:
        raise ReportError(Reason.TOO_LARGE, f"{size} bytes: expected <= {max_bytes}")
    arrays, config = find(content, ARRAYS, ArrayRecord), find(content, CONFIG, ConfigRecord)
    records = [record for record in content.values() if isinstance(record, ArrayRecord)]
    found = [key for record in records for key in record]
    if arrays is None or config is None or found != [GRADIENTS] or GRADIENTS not in arrays:
        raise ReportError(Reason.MISSING_ARRAYS, f"arrays {found[:4]}: expected ['{GRADIENTS}']")
    try:
        gradients = _decode(arrays[GRADIENTS])
        users, round = _integers(config, "users"), _integer(config, "round")
    except Exception as error:  # numpy and torch raise what they like on hostile bytes
        raise ReportError(Reason.MALFORMED, f"{type(error).__name__}: {error}") from None
    return Report(round=round, users=users, gradients=gradients)


def _bytes(value: object) -> int:
    """Return the size of an entry of a record as it travels, but for a few bytes of framing."""
    if isinstance(value, Array):
        return len(value.data) + len(value.dtype) + len(value.stype) + 8 * len(value.shape)
    if isinstance(value, list):
        return sum(_bytes(entry) for entry in value)
    return len(value) if isinstance(value, str | bytes) else 8


def _decode(array: Array) -> Tensor:
    tensor = plain(array)
    if tensor is not None:
        return tensor
    values = array.numpy()
    if not isinstance(values, np.ndarray) or values.nbytes > len(array.data):
        raise ValueError("the array does not match its header")
    return torch.from_numpy(np.ascontiguousarray(values))


def _integer(config: ConfigRecord, key: str) -> int:
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{key} is {type(value).__name__}: expected an integer")
    return value


def _packed(values: Sequence[int]) -> bytes:
    """Return numbers as bytes: Flower looks at every entry of a list, several times a message."""
    return np.asarray(values, dtype="<i8").tobytes()


def _numbers(packed: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(packed, dtype="<i8").tolist())


_unpacked = lru_cache(maxsize=256)(_numbers)
"""A node is told the same users every round."""


def _integers(config: ConfigRecord, key: str) -> tuple[int, ...]:
    values = config[key]
    if isinstance(values, bytes):
        return _unpacked(values) if len(values) <= REMEMBERED_BYTES else _numbers(values)
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise TypeError(f"{key} is {type(values).__name__}: expected integers")
    return tuple(values)  # type: ignore[arg-type]
