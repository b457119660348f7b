"""Folders on the user's machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pfl_flower.support.errors import ConfigError
from pfl_flower.support.foreign_text import one_line

LONGEST_NAME = 255
"""Bytes of a file's name: no file system in use takes more."""
LONGEST_PATH = 4095
"""Bytes of a path on Linux, and more than elsewhere."""
PROBE = bytes(4096)
"""What is written to see whether there is room: a block of a disk."""


def own_path(key: str, text: str | Path) -> Path:
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
    if "\0" in str(text):
        raise ConfigError(f"{key} = {text}: expected a path, and none has a zero byte in it")
    longest = max(len(os.fsencode(part)) for part in path.parts)
    if longest > LONGEST_NAME or len(os.fsencode(path)) > LONGEST_PATH:
        raise ConfigError(
            f"{key} = {one_line(text)}: expected a path of at most {LONGEST_PATH} bytes, and at "
            f"most {LONGEST_NAME} in each name"
        )
    return path


def writable_folder(key: str, text: str | Path) -> Path:
    """Return a folder that a key names, made as needed, once something was written in it.

    Raises
    ------
    ConfigError
        As ``own_path``, and if it cannot be made, or nothing can be written there.
    """
    path = own_path(key, text)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(PROBE)
    except OSError as error:
        raise ConfigError(
            f"{key} = {path}: expected a folder to write to ({error.strerror or error})"
        ) from None
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
