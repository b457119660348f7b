"""IDX files, in which MNIST and its kind come: a header with the sizes, and bytes."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from pfl_flower.support.errors import DataError

UNSIGNED_BYTES = 8
SIZE_BYTES = 4
GZIP = b"\x1f\x8b"
SHOWN = 40
"""Bytes of a foreign file that are shown."""


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Return the bytes of an IDX file, uint8.

    It begins with two zero bytes, 8 for unsigned bytes, the number of dimensions, and each size in
    four bytes, the most significant first; then come the entries, the last dimension fastest.

    Raises
    ------
    DataError
        If it cannot be read, is something else, has another number of dimensions, or is not as long
        as it says.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _foreign(path, f"it cannot be read ({error.strerror})") from None
    start = (1 + dimensions) * SIZE_BYTES
    if fault := _foreign_head(content[: max(start, SHOWN)], dimensions):
        raise _foreign(path, fault)
    ends = range(2 * SIZE_BYTES, start + 1, SIZE_BYTES)
    sizes = [int.from_bytes(content[end - SIZE_BYTES : end], "big") for end in ends]
    expected = start + math.prod(sizes)
    if len(content) != expected:
        fault = "cut off" if len(content) < expected else "too long"
        by_header = f"{' x '.join(map(str, sizes))} entries, {expected:,}"
        raise _foreign(path, f"it is {fault}: {len(content):,} bytes, by its header {by_header}")
    if not math.prod(sizes):
        raise _foreign(path, "it holds nothing")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(sizes)


def _foreign_head(head: bytes, dimensions: int) -> str:
    """Return why a file does not begin as it should; empty if it does."""
    if not head:
        return "it is empty"
    if head.startswith(GZIP):
        return "it is packed by gzip; unpack it under this name"
    if head.lstrip()[:1] == b"<":
        return f"it is a web page, {head[:SHOWN]!r}"
    if len(head) < SIZE_BYTES or head[:3] != bytes((0, 0, UNSIGNED_BYTES)):
        return f"it begins with {head[:SHOWN]!r}"
    if head[3] != dimensions:
        return f"it has {head[3]} dimensions, where {dimensions} are right: images or labels?"
    return "it is cut off in its header" if len(head) < (1 + dimensions) * SIZE_BYTES else ""


def _foreign(path: Path, fault: str) -> DataError:
    return DataError(
        f"{path}: {fault}; expected an IDX file of bytes, or none: then it is downloaded"
    )
