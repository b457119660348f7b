"""Folders on the user's machine."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder(configured: str = "") -> Path:
    """Return the data folder: the configured one, else ``PFL_DATA_DIR``, else one in the cache."""
    chosen = configured or os.environ.get("PFL_DATA_DIR", "")
    return Path(chosen).expanduser().absolute() if chosen else cache_folder() / "data"


def cache_folder() -> Path:
    """Return the folder for what can be computed again: ``PFL_CACHE_DIR`` or ``~/.cache``."""
    chosen = os.environ.get("PFL_CACHE_DIR", "")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "pfl-flower"
