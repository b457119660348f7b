"""Runs that are killed: a forked process that kills itself with SIGKILL at a chosen moment."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfl_flower import client_app, server_app
from pfl_flower.run.config import RunConfig
from pfl_flower.support import files
from pfl_flower.transport.inprocess import run_in_process


def complete(config: RunConfig, nodes: int = 2, **grid: Any) -> np.ndarray:
    """Run to the end in this process and return rho of every round."""
    run_in_process(server_app.app, client_app.app, nodes=nodes, run_config=config.flat(), **grid)
    trajectory: np.ndarray = np.load(config.folder() / "trajectory.npy", allow_pickle=False)
    return trajectory


def cut(config: RunConfig, at: int, *, half: bool = False, nodes: int = 2, **grid: Any) -> bool:
    """Run in a fork that kills itself when it puts its ``at``-th file, or its half, on the disk.

    Return whether it was killed; it was not if it wrote fewer files.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # A fork has none of its parent's OpenMP threads, and would wait for them for ever.
            torch.set_num_threads(1)
            safe: dict[int, int] = {}
            with counted(lambda count, descriptor: _sync(descriptor, safe, count == at, half)):
                complete(config, nodes, **grid)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@contextmanager
def counted(moment: Callable[[int, int], None]) -> Iterator[list[int]]:
    """Call ``moment`` at every fsync, with its number and the descriptor of the file."""
    count = [0]

    def fsync(descriptor: int) -> None:
        count[0] += 1
        moment(count[0], descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "fsync", fsync)
        yield count


def _sync(descriptor: int, safe: dict[int, int], die: bool, half: bool) -> None:
    """Note what of each file is on the disk; or die, and half of what was not there is lost."""
    found = os.fstat(descriptor)
    if die and half and stat.S_ISREG(found.st_mode):
        os.ftruncate(descriptor, (safe.get(found.st_ino, 0) + found.st_size) // 2)
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
    # A number that was another file's means nothing: what is new is shorter than it was.
    safe[found.st_ino] = found.st_size


def last_round(folder: Path) -> int:
    """Return the last round whose row is whole."""
    path = folder / "rounds.csv"
    rows = path.read_text().splitlines() if path.exists() else []
    return int(rows[-1].split(",")[1]) if len(rows) > 1 else 0
