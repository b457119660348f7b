"""Lists of ids that are read and written once, and what is looked up in them."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfl_flower.support import users as module
from pfl_flower.support.users import (
    Users,
    among,
    ascending,
    divided,
    ids,
    selected,
    users_in,
    users_of,
)

SETS = st.frozensets(st.integers(0, 30))


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_ids_are_those_of_the_plain_tuple(values: list[int]) -> None:
    plain, users = tuple(values), users_of(values)
    assert users == plain and plain == users and not users != plain
    assert hash(users) == hash(plain)
    assert users.tensor.tolist() == ids(users).tolist() == values
    assert users_in(users.packed) is users
    assert Users(plain) == users and Users((*plain, 1)) != users and users != (*plain, 1)
    again = pickle.loads(pickle.dumps(users))
    assert type(again) is Users and again == users


def test_the_same_ids_are_one_object() -> None:
    first = users_of(range(5))
    assert users_of(torch.arange(5)) is users_of((0, 1, 2, 3, 4)) is users_of(first) is first
    assert users_in(bytes(bytearray(first.packed))) is first


def test_what_is_kept_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    known = module._Known(40)
    monkeypatch.setattr(module, "_known", known)
    first, second = users_of((1, 2)), users_of((3, 4))
    assert users_of((1, 2)) is first
    third = users_of((5, 6))
    assert users_of((1, 2)) is first and users_of((5, 6)) is third
    assert users_of((3, 4)) is not second
    assert users_of(range(6)) is not users_of(range(6)) and users_of((3, 4)) is users_of((3, 4))
    assert known.bytes == 32


@given(SETS, SETS)
def test_who_is_among_whom(users: frozenset[int], some: frozenset[int]) -> None:
    mine = tuple(sorted(users))
    mask = among(ids(mine), ascending(some))
    assert mask.tolist() == [user in some for user in mine]
    assert selected(mine, ascending(some)) == tuple(sorted(users & some))
    assert divided(mine, some) == (tuple(sorted(users & some)), tuple(sorted(users - some)))


def test_all_of_them_are_the_same_object() -> None:
    users = users_of(range(7))
    assert selected(users, torch.arange(9)) is users
    assert divided(users, frozenset()) == ((), users)
    assert divided(users, frozenset())[1] is users
