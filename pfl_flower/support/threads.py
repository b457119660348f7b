"""How many threads the mathematics of a block of code may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Compute with so many threads in the body: torch's, and those of BLAS and OpenMP.

    Sums are split by thread, so the last digits of a result depend on their number.
    """
    before = torch.get_num_threads()
    with threadpool_limits(limits=threads):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
