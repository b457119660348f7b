"""The trackers by name: who is told of every round."""

from __future__ import annotations

from pfl_flower.support.extensions import Extension, Table

TRACKERS: Table[Extension] = Table(
    "tracker",
    {
        "none": Extension(
            factory="pfl_flower.run.tracking.tracker:Nobody",
            text="nobody: rounds.csv has it all",
        ),
        "tensorboard": Extension(
            factory="pfl_flower.run.tracking.tensorboard:TensorBoard",
            text="scalars for TensorBoard, in the folder tensorboard of the run's results; "
            "needs pip install 'pfl-flower[tensorboard]'",
        ),
    },
    own=Extension(text="a class as package.module:Name"),
    passed=("run",),
)
"""From what is tracked, a ``TrackedRun``, to who is told, a ``Tracker``."""
