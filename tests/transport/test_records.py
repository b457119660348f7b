"""What messages have in common: integers as bytes, and the size of a content."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from pfl_flower.support.users import users_of
from pfl_flower.transport.records import content_bytes, integers, numbers, packed

SIZES = [
    ([1, 2, 3], 24),
    ([1.5, 2.0], 16),
    ([True, False], 16),
    (["a", "bcd"], 4),
    ([b"xy", b""], 2),
    ([], 0),
    ("word", 4),
    (7, 8),
]


@pytest.mark.parametrize(("value", "size"), SIZES)
def test_a_content_is_as_large_as_its_entries(value: object, size: int) -> None:
    content = RecordDict({"config": ConfigRecord({"key": value})})  # type: ignore[dict-item]
    assert content_bytes(content) == len("config") + len("key") + size


def test_a_long_list_is_as_large_as_it_travels() -> None:
    content = RecordDict({"m": MetricRecord({"a": [0.5] * 1000, "b": list(range(1000))})})
    assert content_bytes(content) == 3 + 16_000


def test_integers_come_back_as_they_were_sent() -> None:
    users = users_of((3, 9, 2**62))
    config = ConfigRecord({"users": packed(users), "list": [3, 9], "empty": packed(())})
    assert integers(config, "users") is users, "one object for the same bytes"
    assert integers(config, "list") == (3, 9) and integers(config, "empty") == ()
    for sent in ((4, -1), torch.tensor([4, -1])):
        found = numbers(ConfigRecord({"key": packed(sent)}), "key")
        assert found.dtype == torch.int64 and found.tolist() == [4, -1]
    assert numbers(config, "list").tolist() == [3, 9]


@pytest.mark.parametrize("value", ["3", 3, [1.5], [True], b"1234567"])
def test_what_is_no_integers_is_refused(value: object) -> None:
    config = ConfigRecord({"key": value})  # type: ignore[dict-item]
    for read in (integers, numbers):
        with pytest.raises((TypeError, ValueError)):
            read(config, "key")
