"""What grows with the rounds, beside the checkpoints: written once, and never again.

A checkpoint that held all rounds so far would write a number of bytes that grows with the square of
the rounds. They are in a journal instead, to which each checkpoint adds what is new; it says how
far the journal goes, and the SHA-256 of that. What stands behind it never happened.

Every start of the server has a journal of its own, and the one of before is removed once a
checkpoint is in place that does without it: until then a run can go back to where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pfl_flower.run.rounds import Rounds
from pfl_flower.support.archives import regular_file, size_of
from pfl_flower.support.files import SealError, extend_file

PARTS = ("rounds", "rho")
"""The text of ``rounds.csv``; and, with ``save-trajectory``, all numbers of rho of every round."""
FILE = re.compile(rf"checkpoint-([0-9a-f]{{8}})\.({'|'.join(PARTS)})")


class Extent(BaseModel):
    """How far a part of a journal goes.

    Attributes
    ----------
    size : int
        Bytes.
    digest : str
        Their SHA-256.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    size: Annotated[int, Field(ge=0, lt=2**63)] = 0
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = hashlib.sha256().hexdigest()


class Journal:
    """The journal of one start of the server.

    Parameters
    ----------
    folder : Path
        Where checkpoints are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder, token_hex(4)
        self._parts = {part: _Part(part_file(folder, self.token, part)) for part in PARTS}
        self._lines = self._rows = 0

    def add(self, rounds: Rounds, trajectory: Sequence[Tensor]) -> dict[str, str | Extent]:
        """Add what is new; return the journal's name, and how far each part is on the disk."""
        text, rows = rounds.since(self._lines), trajectory[self._rows :]
        extents = {
            "rounds": self._parts["rounds"].add(text.encode()),
            "rho": self._parts["rho"].add(b"".join(row.cpu().numpy().tobytes() for row in rows)),
        }
        self._lines, self._rows = len(rounds), len(trajectory)
        return {"name": self.token, **extents}

    def forget_others(self) -> None:
        """Remove the journals of earlier starts."""
        for path in self.folder.glob("checkpoint-*"):
            match = FILE.fullmatch(path.name)
            if match is not None and match[1] != self.token:
                with contextlib.suppress(OSError):
                    path.unlink()


class _Part:
    def __init__(self, path: Path) -> None:
        self.path, self.extent = path, Extent()
        self._hash = hashlib.sha256()

    def add(self, more: bytes) -> Extent:
        if not more:
            return self.extent
        # What a full disk has left of an earlier attempt is written over.
        extend_file(self.path, self.extent.size, more)
        self._hash.update(more)
        self.extent = Extent(size=self.extent.size + len(more), digest=self._hash.hexdigest())
        return self.extent


def part_file(folder: Path, token: str, part: str) -> Path:
    """Return the file of a part of the journal with this name."""
    return folder / f"checkpoint-{token}.{part}"


def read_part(path: Path, extent: Extent, most: int) -> bytes:
    """Return the bytes of a part that a checkpoint counts, of ``most`` that there can be.

    Raises
    ------
    SealError
        If there are fewer, or others.
    """
    if extent.size > most:
        raise SealError(f"{path.name} has {extent.size:,} bytes: expected at most {most:,}")
    try:
        with regular_file(path) as file:
            content = file.read(extent.size) if size_of(file) >= extent.size else b""
    except OSError as error:
        raise SealError(f"{path.name}, beside it, cannot be read ({error.strerror})") from None
    if hashlib.sha256(content).hexdigest() != extent.digest:
        raise SealError(f"{path.name}, beside it, is damaged, or of another checkpoint")
    return content
