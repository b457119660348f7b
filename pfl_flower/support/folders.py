"""Folders on the user's machine."""

from __future__ import annotations

import os
from pathlib import Path

from pfl_flower.support.errors import ConfigError


def own_path(key: str, text: str) -> Path:
    """Return the absolute path that a key names; ``~`` is the home folder, ``~name`` of another.

    Raises
    ------
    ConfigError
        If there is no such user, or no file can have that name.
    """
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(f"{key} = {text}: expected a path, and there is no such user") from None
    if "\0" in text:
        raise ConfigError(f"{key} = {text}: expected a path, and none has a zero byte in it")
    return path


def data_folder(configured: str = "") -> Path:
    """Return the data folder: the configured one, else ``PFL_DATA_DIR``, else one in the cache.

    Raises
    ------
    ConfigError
        As ``own_path``.
    """
    if configured:
        return own_path("data-dir", configured)
    chosen = os.environ.get("PFL_DATA_DIR", "")
    return own_path("PFL_DATA_DIR", chosen) if chosen else cache_folder() / "data"


def cache_folder() -> Path:
    """Return the folder for what can be computed again: ``PFL_CACHE_DIR`` or ``~/.cache``.

    Raises
    ------
    ConfigError
        As ``own_path``.
    """
    chosen = os.environ.get("PFL_CACHE_DIR", "")
    return own_path("PFL_CACHE_DIR", chosen or "~/.cache/pfl-flower")
