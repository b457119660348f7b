from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from pfl_flower.support.errors import ConfigError
from pfl_flower.support.threads import at_most
from pfl_flower.support.workers import Task, in_processes


def cube(number: int) -> int:
    return number**3


def end(how: str) -> None:
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted(number: int) -> int:
    os.kill(os.getpid(), signal.SIGINT)
    return number


def fail() -> None:
    raise ValueError("first line\nsecond line")


def test_each_task_ends_by_itself_and_none_takes_another_with_it() -> None:
    base = 10
    tasks: list[Task] = [
        (cube, (2,)),
        (end, ("exit",)),
        (fail, ()),
        (end, ("kill",)),
        (lambda: base + int(os.environ["OMP_NUM_THREADS"]), ()),
        # Control-C goes to the whole group: a worker is not to take its task for broken.
        (interrupted, (4,)),
        (cube, (3,)),
    ]
    done = {one.index: one for one in in_processes(tasks, jobs=2, threads=1)}
    assert {i: one.value for i, one in done.items() if not one.error} == {0: 8, 4: 11, 5: 4, 6: 27}
    assert {i: one.error for i, one in done.items() if one.error} == {
        1: "its process ended: exit code 7",
        2: "ValueError: first line second line",
        3: f"its process ended: signal {signal.SIGKILL.value}",
    }
    assert "second line" in done[2].trace


def test_what_cannot_be_sent_is_refused_before_the_first_task(tmp_path: Path) -> None:
    lock = threading.Lock()
    tasks: list[Task] = [(Path.touch, (tmp_path / "run",)), (lambda: lock, ())]
    with pytest.raises(ConfigError, match="jobs = 2: expected 1, because a plug-in cannot be sent"):
        next(in_processes(tasks, jobs=2, threads=1))
    assert not (tmp_path / "run").exists()


PARENT = """
import os, sys, time
from pathlib import Path
from pfl_flower.support.workers import in_processes
folder = sys.argv[1]
def task(i):
    Path(folder, f"{i}-{os.getpid()}").touch()
    time.sleep(600)
list(in_processes([(task, (i,)) for i in range(2)], jobs=2, threads=1))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stderr=subprocess.DEVNULL,
        # A shell that starts the tests in the background has its children ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    _until(lambda: len(list(tmp_path.iterdir())) == 2)
    parent.send_signal(how)
    parent.wait(timeout=60)
    workers = [int(path.name.partition("-")[2]) for path in tmp_path.iterdir()]
    _until(lambda: not any(_alive(worker) for worker in workers))


def _until(true: object, seconds: float = 60.0) -> None:
    assert callable(true)
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_threads_are_bounded_in_the_body_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with at_most(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
