"""Tensors in a file: written in one move, read without unpickling anything but tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pfl_flower.support.files import replacing


def save_tensors(path: Path, content: Mapping[str, Any], *, durable: bool = False) -> None:
    """Write tensors, numbers and text, see ``replacing``.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    with replacing(path, durable=durable) as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:
            # On a full disk torch fails a second time, where it closes its archive.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_tensors(path: Path) -> dict[str, Any] | None:
    """Return what ``save_tensors`` wrote, mapped into memory; None if it cannot be read."""
    if not path.is_file():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # what torch raises for a foreign or cut file is not documented
        return None
    return found if isinstance(found, dict) else None
