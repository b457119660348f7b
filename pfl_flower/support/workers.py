"""Processes that do one task after another; a task that breaks costs itself and nothing else.

A worker is a fresh Python, neither a fork (which hangs or fails once this process has used threads
or a GPU) nor ``multiprocessing``'s spawn (which would run a script without a ``__main__`` guard
again). Tasks are pickled by ``cloudpickle``: classes of a script or a notebook travel whole, what a
module holds travels by its name. A worker whose parent has gone ends at once, in the middle of its
task.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import IO, Any

import cloudpickle

from pfl_flower.support.errors import ConfigError
from pfl_flower.support.foreign_text import one_line

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Task = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """How one task ended.

    Attributes
    ----------
    index : int
        Its place among the tasks.
    value : object
        What it returned; None if it broke.
    error, trace : str
        Why it broke: one line, and the traceback. Empty if it did not.
    """

    index: int
    value: Any = None
    error: str = ""
    trace: str = ""


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    said: IO[bytes]
    index: int = -1

    @classmethod
    def start(cls, threads: int) -> _Worker:
        ours, theirs = Pipe()
        said = tempfile.TemporaryFile()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from pfl_flower.support.workers import serve; serve({theirs.fileno()})"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))},
        )
        theirs.close()
        return cls(process, ours, said)

    def give(self, index: int, packed: bytes) -> None:
        self.index = index
        self.pipe.send_bytes(packed)

    def answer(self) -> Done:
        """Return how its task ended; the end of the process is the end of the task."""
        try:
            value, error, trace = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            code = self.process.wait()
            self.said.seek(0)
            trace = self.said.read().decode(errors="replace")
            died = f"signal {-code}" if code < 0 else f"exit code {code}"
            return Done(index=self.index, error=f"its process ended: {died}", trace=trace)
        return Done(index=self.index, value=value, error=error, trace=trace)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()
        self.said.close()


def ending(tasks: Sequence[Task], *, jobs: int, threads: int) -> Generator[Done, None, None]:
    """Do tasks side by side as ``in_processes`` does; with ``jobs = 1`` in turn, in this process.

    Here they have the threads that this process has.
    """
    if jobs > 1:
        yield from in_processes(tasks, jobs=jobs, threads=threads)
        return
    for index, (run, arguments) in enumerate(tasks):
        try:
            yield Done(index=index, value=run(*arguments))
        except Exception as error:
            yield Done(index=index, error=one_line(error), trace=traceback.format_exc())


def in_processes(tasks: Sequence[Task], *, jobs: int, threads: int) -> Generator[Done, None, None]:
    """Do tasks in ``jobs`` processes of ``threads`` threads each; give each as it ends.

    The processes are gone when this ends, also by an exception or because the caller stops.

    Raises
    ------
    ConfigError
        Before the first task, if one cannot be pickled.
    """
    try:
        waiting = deque(enumerate(map(cloudpickle.dumps, tasks)))
    except Exception as error:
        raise ConfigError(
            f"jobs = {jobs}: expected 1, because a plug-in cannot be sent to another process "
            f"({one_line(error)})"
        ) from error
    busy: dict[Connection, _Worker] = {}
    try:
        for _ in range(min(jobs, len(waiting))):
            worker = _Worker.start(threads)
            busy[worker.pipe] = worker
            worker.give(*waiting.popleft())
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                worker = busy.pop(pipe)
                done = worker.answer()
                if worker.process.poll() is not None or not waiting:
                    worker.stop()
                    worker = _Worker.start(threads) if waiting else worker
                if waiting:
                    busy[worker.pipe] = worker
                    worker.give(*waiting.popleft())
                yield done
    finally:
        for worker in busy.values():
            worker.stop()


def serve(descriptor: int) -> None:
    """Do the tasks that come through an inherited pipe until it is closed; a worker's whole life.

    An interrupt from the keyboard goes to the whole group of processes: it is the parent's to act.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(descriptor)
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, tasks), daemon=True).start()
    while True:
        pipe.send_bytes(_done(tasks.get()))


def _listen(pipe: Connection, tasks: queue.SimpleQueue[bytes]) -> None:
    try:
        while True:
            tasks.put(pipe.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


def _done(packed: bytes) -> bytes:
    try:
        function, arguments = pickle.loads(packed)
        return bytes(cloudpickle.dumps((function(*arguments), "", "")))
    except BaseException as error:
        return pickle.dumps((None, one_line(error), traceback.format_exc()))
