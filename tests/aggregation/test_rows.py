"""Rows by user: who is chosen keeps its own row, wherever it stands."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pfl_flower.aggregation.rows import Rows


@given(st.dictionaries(st.integers(0, 50), st.booleans(), max_size=12))
def test_chosen_users_keep_their_rows(chosen: dict[int, bool]) -> None:
    users = sorted(chosen)
    rows = Rows.of({user: torch.full((2,), float(user)) for user in users})
    mask = torch.tensor([chosen[user] for user in users], dtype=torch.bool)
    expected = [user for user in users if chosen[user]]
    for index in (mask, mask.nonzero()[:, 0], mask.nonzero()[:, 0].flip(0)):
        some = rows.select(index)
        assert list(some) == expected
        assert some.values_by_user.flatten().tolist() == [u for u in expected for _ in range(2)]


def test_neighbours_are_not_copied() -> None:
    rows = Rows(torch.arange(5), torch.arange(10.0).view(5, 2))
    some = rows.select(torch.tensor([False, True, True, False, False]))
    assert some.values_by_user.data_ptr() == rows.values_by_user[1].data_ptr()
    assert list(some) == [1, 2]
