"""How the suite is run: side by side, file by file, what starts Ray or SuperLinks first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Each worker computes on one core: two that both use all of them wait for one another. Set before
# torch is loaded, here and, by inheritance, in the workers and in what tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ENGINES = Path(__file__).parent / "engines"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep files whole, so that their fixtures are made once, and begin with what takes longest.

    Files that start Ray and SuperLinks have ports and homes of their own, and wait more than they
    compute: begun last, each would be waited for alone.
    """
    items.sort(key=lambda item: ENGINES not in item.path.parents)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(str(item.path)))
