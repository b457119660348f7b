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
    """

    name: str
    data_dir: str = ""
    label_noise: float = 0.0
    features: int = 20
    seed: int = 0
    weights: str = ""
    options: str = ""
