"""What the server tells a node in a round, as Flower records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from pfl_flower.support.tokens import fresh
from pfl_flower.transport.nonces import NONCE
from pfl_flower.transport.records import ARRAYS, CONFIG, integer, integers, numbers, packed
from pfl_flower.transport.wire import filled, to_array, to_record, to_tensor

RHO, HONEST_SUM, HONEST = "rho", "honest-sum", "honest"


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
    last_accepted : Tensor or sequence of int
        For each of them the round of its last accepted report, 0 if there is none.
    rho : Tensor
        rho_t, ``(d,)``.
    eta, eta_sum : float
        eta_t, times N / users asked where a sample's sum is rescaled: what one report moves rho by;
        and the sum of these over the rounds before t.
    honest_sum : Tensor or None
        Sum of the honest gradients of round t - 1, ``(d,)``; in the ``oracle`` protocol only.
    honest : Tensor or None
        The honest reports of this round that count, ``(m, d)``; to omniscient attackers only.
    coalition : int
        How many strategic users are asked in this round, told with them; 0 to all others.
    measured : bool
        Whether the accuracies of the node's local models are to come with the reports.
    members : tuple of int
        Ids of all users that the node acts for, ascending; those asked when left out.
    session : Session
        Which start of the server this is, and which round clients may have to go back to.
    """

    round: int
    users: tuple[int, ...]
    last_accepted: Tensor | Sequence[int]
    rho: Tensor
    eta: float
    eta_sum: float
    honest_sum: Tensor | None = None
    honest: Tensor | None = None
    coalition: int = 0
    measured: bool = False
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


def pack_broadcasts(broadcasts: Sequence[Broadcast]) -> list[RecordDict]:
    """Return the contents of a round's training messages.

    What several broadcasts share, rho above all, is packed once and carried by all of them: the
    same tensor, not an equal one.
    """
    made: dict[int, Array] = {}

    def once(tensor: Tensor) -> Array:
        if id(tensor) not in made:
            made[id(tensor)] = to_array(tensor)
        return made[id(tensor)]

    contents = []
    for one in broadcasts:
        arrays = {RHO: once(one.rho)}
        if one.honest_sum is not None:
            arrays[HONEST_SUM] = once(one.honest_sum)
        if one.honest is not None:
            arrays[HONEST] = once(one.honest)
        records = {ARRAYS: filled(ArrayRecord, arrays), CONFIG: _packed_words(one)}
        contents.append(filled(RecordDict, records))
    return contents


def _packed_words(broadcast: Broadcast) -> ConfigRecord:
    """Return all that a broadcast says besides its vectors."""
    config = {
        "round": broadcast.round,
        "users": packed(broadcast.users),
        "last-accepted": packed(broadcast.last_accepted),
        "eta": broadcast.eta,
        "eta-sum": broadcast.eta_sum,
        "session": broadcast.session.name,
        "resumed": broadcast.session.resumed,
        "committed": broadcast.session.committed,
        NONCE: fresh(),
    }
    if broadcast.members != broadcast.users:
        config["members"] = packed(broadcast.members)
    if broadcast.coalition:
        config["coalition"] = broadcast.coalition
    if broadcast.measured:
        config["measured"] = True
    return filled(ConfigRecord, config)


def unpack_broadcast(content: RecordDict, device: torch.device) -> Broadcast:
    """Return the broadcast in a training message, on the device of the node's users."""
    arrays, config = content[ARRAYS], content[CONFIG]
    if not isinstance(arrays, ArrayRecord) or not isinstance(config, ConfigRecord):
        raise TypeError(f"{ARRAYS}, {CONFIG}: expected an ArrayRecord and a ConfigRecord")
    known, honest = arrays.get(HONEST), arrays.get(HONEST_SUM)
    return Broadcast(
        round=integer(config, "round"),
        users=integers(config, "users"),
        last_accepted=numbers(config, "last-accepted"),
        rho=to_tensor(arrays[RHO]).to(device),
        eta=float(config["eta"]),  # type: ignore[arg-type]
        eta_sum=float(config["eta-sum"]),  # type: ignore[arg-type]
        honest_sum=None if honest is None else to_tensor(honest).to(device),
        honest=None if known is None else to_tensor(known).to(device),
        coalition=integer(config, "coalition") if "coalition" in config else 0,
        measured=bool(config.get("measured", False)),
        members=integers(config, "members") if "members" in config else (),
        session=Session(
            str(config["session"]), integer(config, "resumed"), integer(config, "committed")
        ),
    )
