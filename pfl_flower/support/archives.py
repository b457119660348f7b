"""Reading files that anybody may have written: no more than is there, and nothing is executed.

A path may lead to a pipe or a device, which have no end; an archive may hold a gigabyte in a
megabyte, and the header of an array claim any size. What is read here is a regular file whose size
is known before, and arrays whose numbers are in it as they are, one for one.
"""

from __future__ import annotations

import io
import math
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

SUFFIX = ".npy"
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@contextmanager
def regular_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read from, at its beginning.

    Raises
    ------
    OSError
        If it cannot be opened, or is a folder, a pipe or a device.
    """
    # Without O_NONBLOCK a pipe that nobody writes to would hold the opening itself.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is not a regular file")
        yield file


def size_of(file: BinaryIO) -> int:
    """Return how many bytes an open file has."""
    return os.fstat(file.fileno()).st_size


def read_arrays(content: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of what ``np.savez`` wrote, by name.

    Memory taken is the content's size again: nothing is inflated, and each array has the bytes that
    its header claims.

    Raises
    ------
    ValueError
        If it is not an archive of plain arrays, says more than it has, or says a name twice.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            _check_sizes(members, len(content))
            return {
                member.filename.removesuffix(SUFFIX): _array(archive.read(member))
                for member in members
            }
    except (MemoryError, ValueError):
        raise
    except Exception as error:  # zipfile and numpy raise what they like on hostile bytes
        raise ValueError(type(error).__name__) from None


def _check_sizes(members: list[zipfile.ZipInfo], total: int) -> None:
    if len({member.filename for member in members}) != len(members):
        raise ValueError("a name twice")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("compressed")
    # Members may overlap, each within the file and all together far beyond it.
    if sum(member.file_size for member in members) > total:
        raise ValueError("larger than its file")


def _array(content: bytes) -> np.ndarray[Any, Any]:
    """Return the array in the content of an npy file, whose size its header says."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError("an array of a format that is not known")
    shape, _, dtype = _HEADERS[version](stream)
    if dtype.hasobject or len(content) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array that does not match its header")
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)
