"""Arrays and records made without checks are those that Flower's own constructors make."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from torch import Tensor

from pfl_flower.transport.wire import copied_context, copied_records, filled, to_array, to_tensor

ARRAYS = [
    torch.arange(6.0).view(2, 3),
    torch.arange(6.0).view(2, 3).T,
    torch.rand(3, dtype=torch.float64)[::2],
    torch.tensor(2.5),
    torch.zeros((0, 4), dtype=torch.float64),
    torch.arange(3),
    torch.tensor([True, False]),
]


@pytest.mark.parametrize("tensor", ARRAYS, ids=[str(tuple(one.shape)) for one in ARRAYS])
def test_arrays_are_flowers_own(tensor: Tensor) -> None:
    made, flowers = to_array(tensor), Array(np.ascontiguousarray(tensor.numpy()))
    if tensor.ndim == 0:
        flowers = Array(tensor.numpy())
    assert made == flowers
    back = to_tensor(made)
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)
    assert torch.equal(to_tensor(Array(tensor.numpy())), tensor)
    back.zero_()
    assert torch.equal(to_tensor(made), tensor)


def test_bytes_that_are_not_what_they_say_go_to_numpys_parser() -> None:
    honest = to_array(torch.ones(2, 3))
    for dtype, shape, data in (
        ("float32", (3, 2), honest.data),
        ("float64", (2, 3), honest.data),
    ):
        array = Array(dtype=dtype, shape=shape, stype="numpy.ndarray", data=data)
        assert torch.equal(to_tensor(array), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"reshape|mismatch|EOF|read"):
        to_tensor(Array("float32", (2, 3), "numpy.ndarray", honest.data[:-4]))


ENTRIES = [
    (ConfigRecord, {"round": 3, "users": b"12", "eta": 0.5, "names": ["a"]}),
    (MetricRecord, {"worst": 0.1, "values": [1.0, 2.0]}),
    (ArrayRecord, {"rho": to_array(torch.ones(2))}),
    (RecordDict, {"config": ConfigRecord({"a": 1})}),
]


@pytest.mark.parametrize(("kind", "entries"), ENTRIES)
def test_filled_records_are_flowers_own(kind: type, entries: dict[str, object]) -> None:
    record, theirs = filled(kind, entries), kind(entries)
    assert type(record) is kind
    assert record == theirs
    assert record.object_id == theirs.object_id
    with pytest.raises(TypeError):
        record["wrong"] = object()
    assert filled(kind, {}) == kind()


def test_copies_share_nothing_that_can_change() -> None:
    state = RecordDict(
        {
            "memory": ArrayRecord({"theta": to_array(torch.ones(2))}),
            "said": MetricRecord({"values": [1.0, 2.0]}),
        }
    )
    context = Context(
        run_id=1, node_id=2, node_config={"role": "auto"}, state=state, run_config={"lam": 1.0}
    )
    before = copy.deepcopy(state)
    twin, own = copied_context(context), copied_records(state)
    assert twin.state == own == state
    for changed in (twin.state, own):
        changed["said"]["values"].append(3.0)
        changed["memory"]["theta"].__dict__["dtype"] = "int8"
        changed["memory"]["more"] = to_array(torch.zeros(1))
        changed["other"] = ConfigRecord({})
    twin.node_config["role"] = twin.run_config["lam"] = "changed"
    assert state == before
    assert context.node_config == {"role": "auto"}
    assert context.run_config == {"lam": 1.0}
