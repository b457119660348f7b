"""A run's tracker is tried before round 1: made, told of a round, and closed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pfl_flower.run.config import RunConfig
from pfl_flower.run.tracking.harness import NONE, opened
from pfl_flower.run.tracking.table import TRACKERS
from pfl_flower.run.tried import Tried

MADE_UP = {"eta": 0.5, "accuracy_true": 0.1, "norm_rho": 1.0}
METHODS = ("row", "close")


def try_tracker(config: RunConfig) -> None:
    """Try the tracker, in a folder that is removed afterwards.

    Raises
    ------
    ConfigError
        If a package is missing, it lacks a method, or it raises.
    """
    if config.tracker == NONE:
        return
    tried = Tried(TRACKERS.point, config.tracker)
    # What is still written to the folder by a thread of the tracker's own must not fail the run.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        tracker = opened(config, Path(folder), trial=True)
        for method in METHODS:
            if not callable(getattr(tracker, method, None)):
                raise tried.refusal(
                    f"a tracker with {' and '.join(METHODS)}, and it has no {method}"
                )
        with tried.working("a tracker"):
            tracker.row(0, dict(MADE_UP))
            tracker.close()
