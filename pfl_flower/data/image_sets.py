"""The images that a dataset's name means: CIFAR-10, or anybody's folder."""

from __future__ import annotations

from pathlib import Path

import torch

from pfl_flower.data.image_folder import ImageSet, read_tree
from pfl_flower.support.errors import DataError

CIFAR_TREES = ("cifar10-imagefolder", "cifar10-imagefolder.tar")


def read_images(name: str, folder: Path) -> ImageSet:
    """Return the images of a name: of a tree where it ends in ``:PATH``, else CIFAR-10.

    PATH may be relative to ``folder``. CIFAR-10 is torchvision's in ``folder``, or else the tree
    ``cifar10-imagefolder`` there, a folder or a tar, or else downloaded.

    Raises
    ------
    DataError
        If the images are not there, or are not what the layout says.
    """
    _, colon, place = name.partition(":")
    if colon and not place:
        raise DataError(f"dataset = {name}: expected a path after the colon")
    if colon:
        return read_tree(folder / Path(place).expanduser())
    found = _torchvision_cifar10(folder, download=False)
    if found is not None:
        return found
    for tree in CIFAR_TREES:
        if (folder / tree).exists():
            return read_tree(folder / tree)
    found = _torchvision_cifar10(folder, download=True)
    if found is None:
        raise DataError(
            f"data-dir = {folder}: CIFAR-10 is not there and could not be downloaded; put "
            f"cifar-10-batches-py or {CIFAR_TREES[1]} there, or set PFL_DATA_DIR"
        )
    return found


def _torchvision_cifar10(folder: Path, *, download: bool) -> ImageSet | None:
    from torchvision.datasets import CIFAR10

    try:
        train, test = (
            CIFAR10(str(folder), train=part, download=download) for part in (True, False)
        )
    except (RuntimeError, OSError):
        return None
    return ImageSet(
        train=torch.from_numpy(train.data).permute(0, 3, 1, 2).contiguous(),
        train_labels=torch.tensor(train.targets),
        test=torch.from_numpy(test.data).permute(0, 3, 1, 2).contiguous(),
        test_labels=torch.tensor(test.targets),
        classes=list(train.classes),
        key="cifar10-torchvision",
    )
