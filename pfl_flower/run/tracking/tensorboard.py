"""TensorBoard: a scalar for every column of ``rounds.csv`` that is a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pfl_flower.run.tracking.tracker import TrackedRun
from pfl_flower.support.errors import ConfigError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
EXTRA = "pip install 'pfl-flower[tensorboard]'"


class TensorBoard:
    """Writes to the folder ``tensorboard`` of a run's results; ``tensorboard --logdir`` shows it.

    A tag is the name of a column, a step the number of a round. A number is kept in double
    precision, as ``rounds.csv`` has it. In a run that is resumed the rounds after the checkpoint
    take the place of those that an earlier process told of; a run from the start takes the place
    of an earlier one in its folder.

    Parameters
    ----------
    run : TrackedRun
        What is tracked.

    Raises
    ------
    ConfigError
        If TensorBoard is not installed, or the run writes to no folder.
    """

    def __init__(self, run: TrackedRun) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(f"tracker = tensorboard: expected {EXTRA} ({error})") from None
        if run.folder is None:
            raise ConfigError(
                "tracker = tensorboard: expected a run that writes its results: output=..."
            )
        folder = run.folder / FOLDER
        if run.first == 0:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        self._writer: SummaryWriter = SummaryWriter(str(folder), purge_step=run.first)

    def row(self, round: int, numbers: Mapping[str, float]) -> None:
        """Write a scalar for each number, and see that it is on the disk."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, round, new_style=True, double_precision=True)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
