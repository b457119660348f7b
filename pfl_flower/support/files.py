"""Files that prove to be whole: arrays and JSON, written in one move, read without running them.

One line of text says what the file is, in which version, and the SHA-256 of all that follows: an
npz archive, read with ``allow_pickle=False``. A reader sees the old file or the new one, never half
of one, and loading cannot execute anything.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 1
"""Of the files' content; raise it when an old reader would misread a new file."""
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


def write_sealed(path: Path, kind: str, facts: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a file that survives the loss of power, in place of the one of the same name."""
    packed = np.frombuffer(json.dumps(dict(facts)).encode(), dtype=np.uint8)
    body = io.BytesIO()
    np.savez(body, allow_pickle=False, **{FACTS: packed}, **arrays)
    content = body.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    replace_file(path, f"{MAGIC} {kind} {VERSION} {digest}\n".encode() + content)


def replace_file(path: Path, content: bytes) -> None:
    """Put ``content`` on the disk, then under its name, in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_sealed(path: Path, kind: str) -> Sealed:
    """Return what ``write_sealed`` wrote.

    Raises
    ------
    SealError
        In a few words: it cannot be read, is something else, of another version, or damaged.
    """
    try:
        with path.open("rb") as file:
            line, content = file.readline(LONGEST_LINE), file.read()
    except OSError as error:
        raise SealError(f"it cannot be read ({error.strerror})") from None
    words = line.decode("ascii", "replace").split()
    if len(words) != 4 or words[:2] != [MAGIC, kind]:
        raise SealError(f"it is not a {kind} of {MAGIC}")
    if words[2] != str(VERSION):
        raise SealError(f"it is of version {words[2]}, and this {MAGIC} reads version {VERSION}")
    if words[3] != hashlib.sha256(content).hexdigest():
        raise SealError("it is damaged: its content does not match its checksum")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        facts = json.loads(arrays.pop(FACTS).tobytes())
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise SealError(f"it is not what it says ({type(error).__name__})") from None
    if not isinstance(facts, dict):
        raise SealError("it is not what it says (facts)")
    return Sealed(facts, arrays)
