"""Tensors in a file: written in one move, read without unpickling anything but tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def save_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors, numbers and text; a reader sees the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        torch.save(dict(content), partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_tensors(path: Path) -> dict[str, Any] | None:
    """Return what ``save_tensors`` wrote, mapped into memory; None if it cannot be read."""
    if not path.is_file():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # what torch raises for a foreign or cut file is not documented
        return None
    return found if isinstance(found, dict) else None
