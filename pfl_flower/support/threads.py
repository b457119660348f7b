"""How many threads the mathematics of a block of code may use, and work that is shared among them.

Sums that torch and BLAS split among threads have last digits that depend on their number. So the
rounds of a run compute on one thread wherever they add (``one_thread``), and threads share whole
pieces of work, each of which one of them does alone (``each``).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

_here = threading.local()
"""``allowed``: how many threads ``each`` may use where torch has been told to use one."""
_pool: list[ThreadPoolExecutor] = []
"""The threads that help, kept from call to call: to make them takes longer than a small piece."""
# A forked process has the list and none of the threads.
os.register_at_fork(after_in_child=_pool.clear)


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Compute with so many threads in the body: torch's, and those of BLAS and OpenMP."""
    with threadpool_limits(limits=threads), thread_limit(threads):
        yield


@contextmanager
def thread_limit(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads within, and ``each`` as many."""
    before, allowed = torch.get_num_threads(), getattr(_here, "allowed", None)
    torch.set_num_threads(count)
    _here.allowed = None
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _here.allowed = allowed


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread within; ``each`` still shares work among those it had before."""
    if getattr(_here, "allowed", None) is not None:
        yield
        return
    before = torch.get_num_threads()
    _here.allowed = before
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _here.allowed = None


def allowed() -> int:
    """Return how many threads work may be shared among, also within ``one_thread``."""
    return getattr(_here, "allowed", None) or torch.get_num_threads()


def each(work: Callable[..., Tensor], tasks: Sequence[tuple[Any, ...]]) -> list[Tensor]:
    """Return what the tasks give, in their order: each done by one thread, alone.

    As many at once as torch may use threads. What a task of its own calls ``each`` for is done
    where it stands.
    """
    with one_thread():
        helpers = min(allowed(), len(tasks)) - 1
        if helpers <= 0:
            return [work(*task) for task in tasks]
        # Each thread takes the next free task: one that is held up leaves the rest to others.
        waiting, found = iter(range(len(tasks))), dict[int, Tensor]()

        def share() -> None:
            for number in waiting:
                found[number] = work(*tasks[number])

        helping = [_threads().submit(share) for _ in range(helpers)]
        try:
            with thread_limit(1):
                share()
        finally:
            _finish(helping)
        return [found[number] for number in range(len(tasks))]


def _finish(helping: Sequence[Future[None]]) -> None:
    """Wait for those who have begun; what a thread raised is raised here."""
    begun = [one for one in helping if not one.cancel()]
    for one in begun:
        one.exception()
    for one in begun:
        one.result()


def _threads() -> ThreadPoolExecutor:
    if not _pool:
        # Threads are made as they are needed, never more than this.
        most = max(32, os.cpu_count() or 1)
        _pool.append(ThreadPoolExecutor(most, "pfl-mathematics", torch.set_num_threads, (1,)))
    return _pool[0]
