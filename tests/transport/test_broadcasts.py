"""A broadcast has one rho, and a round's broadcasts carry it packed once."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from pfl_flower.transport import broadcasts
from pfl_flower.transport.broadcasts import Broadcast, Session, pack_broadcasts, unpack_broadcast
from pfl_flower.transport.records import ARRAYS

CPU = torch.device("cpu")
RHO = torch.tensor([1.0, -2.5, 1e-300], dtype=torch.float64)
FIRST = Broadcast(
    round=3,
    users=(0, 2),
    last_accepted=torch.tensor([2, 0]),
    rho=RHO,
    eta=0.1,
    eta_sum=0.3,
    session=Session("abc", 1, 2),
)
TOLD = {
    "all asked": FIRST,
    "some asked": replace(FIRST, members=(0, 1, 2)),
    "an oracle's": replace(FIRST, honest_sum=torch.tensor([0.5, 0.25, 7.0], dtype=torch.float64)),
    "an omniscient one's": replace(
        FIRST, honest=torch.tensor([[0.5, 0.25, 7.0], [1.0, 2.0, 3.0]]).double(), coalition=2
    ),
    "of nobody's reports": replace(FIRST, honest=torch.zeros((0, 3)).double(), coalition=1),
    "in float32": replace(FIRST, rho=RHO.float()),
    "many users": replace(
        FIRST,
        users=tuple(range(2000)),
        last_accepted=torch.ones(2000, dtype=torch.int64),
        members=(),
    ),
    "no session": replace(FIRST, session=Session()),
}


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


@pytest.mark.parametrize("name", TOLD)
def test_what_is_told_is_what_is_heard(name: str) -> None:
    (content,) = pack_broadcasts([TOLD[name]])
    heard = unpack_broadcast(content, CPU)
    for field in fields(Broadcast):
        assert same(getattr(heard, field.name), getattr(TOLD[name], field.name)), field.name


def test_each_hears_the_rho_that_it_was_told() -> None:
    """Before, rho came from elsewhere, whatever the broadcast said."""
    told = [FIRST, replace(FIRST, rho=RHO + 1), replace(FIRST, rho=RHO.clone())]
    heard = [unpack_broadcast(content, CPU).rho for content in pack_broadcasts(told)]
    for one, other in zip(told, heard, strict=True):
        assert torch.equal(one.rho, other)


def test_what_many_share_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[torch.Tensor] = []
    to_array = broadcasts.to_array

    def counted(tensor: torch.Tensor):  # type: ignore[no-untyped-def]
        packed.append(tensor)
        return to_array(tensor)

    monkeypatch.setattr(broadcasts, "to_array", counted)
    honest = torch.ones(3, dtype=torch.float64)
    told = [
        replace(FIRST, users=(user,), last_accepted=torch.tensor([0]), members=())
        for user in range(50)
    ]
    told += [replace(one, honest_sum=honest) for one in told[:2]]
    contents = pack_broadcasts(told)
    assert len(contents) == 52
    assert [id(tensor) for tensor in packed] == [id(RHO), id(honest)]
    assert len({id(content[ARRAYS]["rho"].data) for content in contents}) == 1  # type: ignore[index]
    assert pack_broadcasts([]) == []
