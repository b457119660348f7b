"""A model's layers as Flower carries them, and as one vector that an attack can move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from pfl_flower.support.errors import DataError

Values: TypeAlias = NDArray[Any]
Layers: TypeAlias = Mapping[str, Values]
"""Arrays by the layer's name, in order."""

FLOATING = "f"
"""numpy's kind of the layers that training moves; others, such as counters, are buffers."""
HEADER = 4096
"""Most bytes of an array's header: numpy's own has 128, for any shape of up to 20 dimensions."""


@dataclass(frozen=True)
class Layout:
    """The layers of a model: what they are called, their shapes and types.

    Parameters
    ----------
    shapes, dtypes : mapping
        Of every layer, in order.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype[Any]]

    @staticmethod
    def of(layers: Layers) -> Layout:
        """Return the layout of these layers."""
        return Layout(
            {name: values.shape for name, values in layers.items()},
            {name: values.dtype for name, values in layers.items()},
        )

    @property
    def moved(self) -> list[str]:
        """The layers of floating numbers, which an attack moves; others pass unchanged."""
        return [name for name, dtype in self.dtypes.items() if dtype.kind == FLOATING]

    def vector(self, layers: Layers) -> Tensor:
        """Return the moved layers as one vector ``(d,)`` in float64, in the layout's order."""
        flat = [layers[name].astype(np.float64).ravel() for name in self.moved]
        return torch.from_numpy(np.concatenate(flat)) if flat else torch.zeros(0).double()

    def layers(self, vector: Tensor, others: Layers) -> tuple[dict[str, Values], dict[str, int]]:
        """Return a vector as layers of their own types, and how many numbers each had to limit.

        A number beyond a type's range, 65,504 for float16, would become infinite, which tells the
        server and the reader of its log nothing: it is the largest of its sign instead.

        Parameters
        ----------
        vector : Tensor
            ``(d,)``.
        others : mapping
            Where the layers come from that are not floating.
        """
        made: dict[str, Values] = {}
        limited: dict[str, int] = {}
        start, flat = 0, vector.numpy()
        for name, shape in self.shapes.items():
            dtype = self.dtypes[name]
            if dtype.kind != FLOATING:
                made[name] = others[name]
                continue
            size = int(np.prod(shape, dtype=np.int64))
            part, most = flat[start : start + size], float(np.finfo(dtype).max)
            start += size
            if beyond := int((np.abs(part) > most).sum()):
                limited[name] = beyond
            made[name] = np.clip(part, -most, most).reshape(shape).astype(dtype)
        return made, limited

    def difference(self, layers: Layers) -> str:
        """Return in which layer others differ from the layout, nothing if they fit."""
        other = Layout.of(layers)
        if list(other.shapes) != list(self.shapes):
            return f"layers {', '.join(other.shapes)}, not {', '.join(self.shapes)}"
        for name, shape in self.shapes.items():
            if other.shapes[name] != shape:
                return f"layer {name} has the shape {other.shapes[name]}, not {shape}"
        return ""


def unpacked(record: ArrayRecord) -> dict[str, Values]:
    """Return the arrays of a record of one's own app, which need no check."""
    return {name: array.numpy() for name, array in record.items()}


def packed(layers: Layers) -> ArrayRecord:
    """Return layers as Flower's record."""
    return ArrayRecord({name: Array(np.asarray(values)) for name, values in layers.items()})


def arrays_of(content: RecordDict) -> dict[str, ArrayRecord]:
    """Return the records of arrays in a message's content."""
    return {name: item for name, item in content.items() if isinstance(item, ArrayRecord)}


class Header(NamedTuple):
    """What an array's own header says.

    Attributes
    ----------
    shape, dtype
        Of the array.
    columns : bool
        Whether its numbers are in the order of the columns.
    start : int
        Byte at which they begin.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    columns: bool
    start: int


def declared(array: Array) -> Header:
    """Return what an array's own header says.

    Flower's ``Array`` says its shape and type once more beside its bytes; the sender wrote both.

    Raises
    ------
    DataError
        If the bytes are not numpy's format, or hold objects.
    """
    if array.stype != "numpy.ndarray":
        raise DataError(f"an array of {array.stype}, not numpy.ndarray")
    head = BytesIO(array.data[:HEADER])
    try:
        version = np.lib.format.read_magic(head)
        parsed = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, columns, dtype = parsed(head)
    except Exception as error:
        # The header is Python's source: its parsers raise errors of many kinds.
        raise DataError("bytes that are no array of numpy's") from error
    if dtype.hasobject:
        raise DataError("an array of Python objects")
    return Header(shape, dtype, columns, head.tell())


def read(array: Array, header: Header) -> Values:
    """Return a stranger's array without copying it, and without making room for what it claims.

    Parameters
    ----------
    array : Array
        Flower's.
    header : Header
        Its own, as ``declared`` found it.

    Raises
    ------
    DataError
        If it has another number of bytes than its header says.
    """
    shape, dtype, columns, start = header
    size = dtype.itemsize
    for length in shape:  # in Python's integers: numpy's overflow
        size *= length
    if size != len(array.data) - start:
        raise DataError(f"{len(array.data) - start} bytes for {size}")
    if size == 0:
        return np.zeros(shape, dtype)
    values: Values = np.frombuffer(array.data, dtype, offset=start)
    return values.reshape(shape, order="F" if columns else "C")
