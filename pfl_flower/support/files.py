"""Files: the one way in which this project writes them, and files that prove to be whole.

``replacing`` and ``replace_file`` write in one move: a reader sees the old file or the new one,
never half of one, and a write that fails leaves the old one and nothing else. ``extend_file`` is
for what only grows, and is read as far as something else says.

A sealed file proves to be whole as well, and reading it cannot execute anything. One line of text
says what the file is, in which version, and the SHA-256 of all that follows: an npz archive whose
arrays are neither pickled nor compressed. The line is read, and found to be right, before the rest.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

import numpy as np

from pfl_flower.support.archives import read_arrays, regular_file, size_of

VERSION = 2
"""Of the files' content; raise it when an old reader would misread a new file, or a new one an old
file: 1 was pfl-flower 0.1's, whose keys had other defaults."""
MAGIC = "pfl-flower"
FACTS = "facts"
LONGEST_LINE = 200

Arrays = Mapping[str, np.ndarray[Any, Any]]


class SealError(ValueError):
    """A file that cannot be used: absent, foreign, of another version, or damaged."""


@dataclass(frozen=True)
class Sealed:
    """What a file holds: facts that JSON can say, and arrays by name."""

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray[Any, Any]]


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file to write to; at the end of the block, and not before, it takes ``path``'s place.

    When the block, the disk or an interrupt stops it, what was written is removed and the file that
    was there stays. Folders are made as needed.

    Parameters
    ----------
    path : Path
        Where the file is to be.
    durable : bool
        Whether it has to survive the loss of power from then on, which costs a disk's milliseconds:
        for what cannot be computed again, or only in hours.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: several processes may write the same file, each of them a whole one.
    partial = path.with_name(f".{path.name}.{token_hex(4)}.part")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def replace_file(path: Path, content: bytes | str, *, durable: bool = False) -> None:
    """Write bytes, or text in UTF-8, in one move, see ``replacing``."""
    with replacing(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def extend_file(path: Path, at: int, more: bytes) -> None:
    """Put bytes at the end of a file that has ``at``; what stands behind these is written over.

    They have survived the loss of power when this returns. A write that fails leaves the ``at``
    bytes as they are, and perhaps some of those behind them.
    """
    new = at == 0
    with path.open("wb" if new else "r+b") as file:
        file.seek(at)
        file.write(more)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    if new:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put a new name on the disk, which is the folder's to keep."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_sealed(path: Path, kind: str, facts: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a file that survives the loss of power, in place of the one of the same name."""
    packed = np.frombuffer(json.dumps(dict(facts)).encode(), dtype=np.uint8)
    body = io.BytesIO()
    entries: dict[str, Any] = {FACTS: packed, **arrays}
    # Not with allow_pickle: NumPy before 2.1 takes that for one more array.
    np.savez(body, **entries)
    content = body.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    replace_file(path, f"{MAGIC} {kind} {VERSION} {digest}\n".encode() + content, durable=True)


def read_sealed(path: Path, kind: str, *, most: int | None = None) -> Sealed:
    """Return what ``write_sealed`` wrote.

    Parameters
    ----------
    path, kind
        The file, and what it has to be.
    most : int, optional
        Bytes that such a file can have; a larger one is not read.

    Raises
    ------
    SealError
        In a few words: it cannot be read, is something else, of another version, damaged, or
        larger than it can be.
    """
    content = _unsealed(path, kind, most)
    try:
        arrays = read_arrays(content)
        facts = json.loads(arrays.pop(FACTS).tobytes())
    except (ValueError, KeyError, RecursionError) as error:
        raise SealError(f"it is not what it says ({type(error).__name__})") from None
    if not isinstance(facts, dict):
        raise SealError("it is not what it says (facts)")
    return Sealed(facts, arrays)


def _unsealed(path: Path, kind: str, most: int | None) -> bytes:
    """Return what follows the first line of a file, if that says so."""
    try:
        with regular_file(path) as file:
            words = file.readline(LONGEST_LINE).decode("ascii", "replace").split()
            if len(words) != 4 or words[:2] != [MAGIC, kind]:
                raise SealError(f"it is not a {kind} of {MAGIC}")
            if words[2] != str(VERSION):
                raise SealError(
                    f"it is of version {words[2]}, and this {MAGIC} reads version {VERSION}; go on "
                    f"with the {MAGIC} that wrote it, or start afresh"
                )
            if most is not None and size_of(file) > most:
                raise SealError(f"it has {size_of(file):,} bytes: expected at most {most:,}")
            content = file.read()
    except OSError as error:
        raise SealError(f"it cannot be read ({error.strerror})") from None
    if words[3] != hashlib.sha256(content).hexdigest():
        raise SealError("it is damaged: its content does not match its checksum")
    return content
