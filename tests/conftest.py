"""How the suite is run: side by side, and what starts Ray or SuperLinks in turn and first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Each worker computes on one core: two that both use all of them wait for one another. Set before
# torch is loaded, here and, by inheritance, in the workers and in what tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ENGINES = Path(__file__).parent / "engines"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep files whole, and put those of one group, which wait more than they compute, first.

    A file's fixtures are then made once; Ray, which takes ports and cores as it finds them, runs
    once at a time; and the longest group does not begin when the other workers are done.
    """
    items.sort(key=lambda item: ENGINES not in item.path.parents)
    for item in items:
        group = "engines" if ENGINES in item.path.parents else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
