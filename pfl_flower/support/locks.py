"""Folders in which one process writes at a time.

The lock is the system's (``flock`` on a file in the folder), so that it ends with the process that
holds it, however that ends: a file that a killed process has left is not a lock.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from logging import getLogger
from pathlib import Path

from pfl_flower.support.errors import ConfigError
from pfl_flower.support.foreign_text import one_line

if sys.platform != "win32":
    import fcntl

LOCK_FILE = ".lock"
UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
"""What a file system answers that has no locks, as some network drives."""
LONGEST = 200


@contextmanager
def only_writer(key: str, folder: Path) -> Iterator[None]:
    """Let nobody else write to a folder, which is made as needed, while the body runs.

    Where files cannot be locked, Flower's logger says so, and the body runs all the same.

    Raises
    ------
    ConfigError
        If another process, or another thread of this one, writes there: who that is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    descriptor = _acquired(key, path)
    try:
        if descriptor is not None:
            _sign(descriptor)
        yield
    finally:
        if descriptor is not None:
            # While it is held: whoever waits at this file sees that it is no longer there.
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)


def _acquired(key: str, path: Path) -> int | None:
    """Return the locked file's descriptor, None where nothing can be locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not _lock(descriptor):
                _warn(path.parent)
            elif not _is_there(descriptor, path):
                os.close(descriptor)  # its last holder has removed it in between
                continue
            else:
                return descriptor
        except BlockingIOError:
            holder = one_line(os.pread(descriptor, LONGEST, 0).decode(errors="replace"))
            os.close(descriptor)
            raise ConfigError(
                f"{key} = {path.parent}: expected a folder to which nothing else writes, and "
                f"{holder or 'another process'} does; wait for it, or choose another"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None


def _lock(descriptor: int) -> bool:
    """Lock an open file; return False where that cannot be."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    return True


def _is_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Say in the file who holds it; on a full disk nobody does."""
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    said = f"process {os.getpid()} on {socket.gethostname()} (since {since})"
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, said.encode(), 0)


def _warn(folder: Path) -> None:
    said = f"{folder} is on a file system without locks: see that no two runs write to it"
    getLogger("flwr").warning("%s", one_line(said))
