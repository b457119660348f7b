"""Tensors as Flower's arrays and records, and records that are filled or copied without checks.

Flower looks at every entry of a record when it is set, and tries out three signatures for every
array; that costs more than a small array. What this project makes itself is of the right types, as
the types of these functions say. The trick itself is in ``flower_internals``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from pfl_flower.objective import vectors
from pfl_flower.transport.flower_internals import (
    array_of,
    assembled,
    entries,
    holding,
    new_array,
    twin,
)

Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)
Filled = TypeVar("Filled", ArrayRecord, ConfigRecord, MetricRecord, RecordDict)

KINDS = {torch.float32: "float32", torch.float64: "float64", torch.int64: "int64"}
"""What is read and written without numpy's parser."""
NUMBERS: Mapping[str, np.dtype[Any]] = {kind: np.dtype(kind) for kind in KINDS.values()}
_EMPTY: Mapping[type, Any] = {
    kind: kind() for kind in (ArrayRecord, ConfigRecord, MetricRecord, RecordDict)
}


def filled(kind: type[Filled], values: Mapping[str, Any]) -> Filled:
    """Return a record of this kind with entries that need no check."""
    record: Filled = holding(_EMPTY[kind], dict(values))
    return record


def find(content: RecordDict, name: str, kind: type[Record]) -> Record | None:
    """Return the record of this name if there is one and it is of this kind."""
    record = entries(content).get(name)
    return record if isinstance(record, kind) else None


@lru_cache(maxsize=256)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the header that numpy writes before the numbers of a C-ordered array."""
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer,
        {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape},
    )
    return buffer.getvalue()


class OnCard(Array):
    """Flower's form of a tensor on a card: its numbers stay there until somebody asks for bytes.

    Within a process nobody does; a message that leaves it is made of them, and they are what
    ``to_array`` gives of the same numbers on the CPU.
    """

    tensor: Tensor

    @classmethod
    def of(cls, tensor: Tensor, kind: str) -> OnCard:
        """Return the array of a tensor of its own, that nobody writes to."""
        return array_of(cls, kind, tuple(tensor.shape), tensor=tensor)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes, for which the card is waited for."""
        return to_array(self.tensor.cpu()).data

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave a process as bytes: another one need not see the card."""
        return new_array, (self.dtype, self.shape, self.data)


def bytes_in(array: Array) -> int:
    """Return how many bytes an array's data are, or would be."""
    if isinstance(array, OnCard):
        return len(_header(array.dtype, tuple(array.shape))) + array.tensor.nbytes
    return len(array.data)


def to_array(tensor: Tensor) -> Array:
    """Return Flower's form of a tensor; its numbers are copied once, on a card when need be."""
    kind = KINDS.get(tensor.dtype)
    if not tensor.is_cpu and kind is not None:
        return OnCard.of(vectors.copied(tensor.detach().contiguous()), kind)
    # One call for detach, cpu and the rest; numpy keeps a number without axes one.
    values = np.asarray((tensor if tensor.is_cpu else tensor.cpu()).numpy(force=True), order="C")
    if kind is None:
        return Array(values)
    data = b"".join((_header(kind, values.shape), values.data))
    return new_array(kind, values.shape, data)


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return the record of named tensors."""
    return filled(ArrayRecord, {name: to_array(tensor) for name, tensor in tensors.items()})


def plain(array: Array) -> Tensor | None:
    """Return a copy of what ``to_array`` wrote; None if the bytes are not exactly of that form."""
    if isinstance(array, OnCard):
        return vectors.copied(array.tensor)
    shape, kind, data = tuple(array.shape), NUMBERS.get(array.dtype), array.data
    if array.stype != "numpy.ndarray" or kind is None:
        return None
    header = _header(array.dtype, shape)
    before = len(header)
    if len(data) != before + math.prod(shape) * kind.itemsize or not data.startswith(header):
        return None
    return torch.from_numpy(np.frombuffer(data, kind, offset=before).copy()).view(shape)


def to_tensor(array: Array) -> Tensor:
    """Return the tensor of a trusted array, with memory of its own."""
    tensor = plain(array)
    return torch.from_numpy(array.numpy()) if tensor is None else tensor


def copied(message: Message) -> Message:
    """Return a copy that shares nothing with the message but immutable bytes."""
    metadata = twin(message.metadata)
    if message.has_error():
        return assembled(message, metadata, error=twin(message.error))
    return assembled(message, metadata, content=copied_records(message.content))


def copied_context(context: Context) -> Context:
    """Return a copy that shares nothing with the context but immutable bytes."""
    own = twin(context)
    own.node_config, own.run_config = dict(context.node_config), dict(context.run_config)
    own.state = copied_records(context.state)
    return own


def copied_records(records: RecordDict) -> RecordDict:
    """Return records of one's own: the lists in them and arrays' attributes too, not the bytes."""
    own = {}
    for name, record in entries(records).items():
        if isinstance(record, ArrayRecord):
            values = {key: twin(array) for key, array in entries(record).items()}
        else:
            values = {
                # Compared, not asked: there are a hundred entries a round, and no class of a list.
                key: value.copy() if type(value) is list else value
                for key, value in entries(record).items()
            }
        own[name] = holding(record, values)
    return holding(records, own)
