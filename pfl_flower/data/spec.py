"""Which data a run asks for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSpec:
    """What identifies a source; two equal specs are the same data.

    Attributes
    ----------
    name : str
        As in the table of data sets; a PATH may be relative to the data folder.
    data_dir : str
        Folder of the downloaded sets; empty for ``PFL_DATA_DIR``, or else the cache folder.
    label_noise : float
        Fraction of training labels redrawn.
    features : int
        Dimension of the synthetic sets.
    seed : int
        Of the noise and of the synthetic models.
    weights : str
        File of the network that embeds images; empty for the one that ``train-vgg`` writes.
    options : str
        ``dataset-options``, JSON.
    label_column, user_column, task, standardise
        The keys of these names, which tables of one's own read.
    holdout : float
        Fraction of points of one's own that becomes the common test set.
    columns, classes : int
        How many features and classes the data have, told beforehand; 0: as many as are found.
    shape : tuple of int
        Of a point that is an image, ``(channels, height, width)``, told beforehand.
    test_data : str
        PATH of the common test set, of the same kind; empty where the data have it.
    away : bool
        Whether this machine reads none of the users' points: they lie on nodes alone.
    version : tuple of int
        Of the files at hand: another one, other data.
    """

    name: str
    data_dir: str = ""
    label_noise: float = 0.0
    features: int = 20
    seed: int = 0
    weights: str = ""
    options: str = ""
    label_column: str = "label"
    user_column: str = ""
    task: str = "auto"
    standardise: str = "off"
    holdout: float = 0.2
    columns: int = 0
    classes: int = 0
    shape: tuple[int, ...] = ()
    test_data: str = ""
    away: bool = False
    version: tuple[int, ...] = ()

    def reading(self) -> tuple[object, ...]:
        """Return what of the spec changes what is read from a file of one's own."""
        return (
            self.options,
            self.label_column,
            self.user_column,
            self.task,
            self.standardise,
            self.holdout,
            self.classes,
            self.shape,
        )
