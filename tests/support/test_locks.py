"""One writer for a folder: the lock is the system's, and dies with its holder."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pfl_flower.support import locks
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.locks import LOCK_FILE, only_writer

HOLD = (
    "import sys, time; from pathlib import Path\n"
    "from pfl_flower.support.locks import only_writer\n"
    "with only_writer('output-dir', Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


def free(folder: Path) -> bool:
    try:
        with only_writer("output-dir", folder):
            return True
    except ConfigError:
        return False


def test_another_process_is_named_and_its_death_frees_the_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError) as refused, only_writer("output-dir", tmp_path):
            pass
        said = str(refused.value)
        assert said.startswith(f"output-dir = {tmp_path}: expected a folder to which nothing else")
        assert f"process {holder.pid} on {socket.gethostname()}" in said
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    assert (tmp_path / LOCK_FILE).exists()
    assert free(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()


def test_threads_of_one_process_exclude_one_another(tmp_path: Path) -> None:
    """Never two at a time, whoever removes the file in between."""
    inside, most, entered = [0], [0], [0]

    def enter() -> None:
        for _ in range(200):
            try:
                with only_writer("output-dir", tmp_path):
                    inside[0] += 1
                    most[0], entered[0] = max(most[0], inside[0]), entered[0] + 1
                    inside[0] -= 1
            except ConfigError:
                continue

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert entered[0] > 4


def test_a_file_that_was_removed_in_between_is_not_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last holder removes the file after this one has opened it."""
    opened: list[int] = []
    real = os.open

    def opening(path: Path, flags: int, mode: int) -> int:
        descriptor = real(path, flags, mode)
        if not opened:
            path.unlink()
        opened.append(descriptor)
        return descriptor

    monkeypatch.setattr(locks.os, "open", opening)
    with only_writer("output-dir", tmp_path):
        assert len(opened) == 2
        assert not free(tmp_path)


@pytest.mark.parametrize("number", sorted(locks.UNSUPPORTED))
def test_a_file_system_without_locks_is_named_and_used(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    with only_writer("output-dir", tmp_path):
        pass
    assert f"{tmp_path} is on a file system without locks" in caplog.text


def test_another_failure_of_locking_is_not_taken_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(locks.fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), only_writer("output-dir", tmp_path):
        pass
