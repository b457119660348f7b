"""The images that a dataset's name means: CIFAR-10, or anybody's folder."""

from __future__ import annotations

import os
from http.client import HTTPException
from pathlib import Path

import torch

from pfl_flower.data.image_folder import ImageSet, read_tree
from pfl_flower.support.errors import DataError
from pfl_flower.support.folders import own_path
from pfl_flower.support.foreign_text import one_line

CIFAR_BATCHES = "cifar-10-batches-py"
"""Torchvision's folder."""
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
        own = own_path("dataset", place) if place.startswith("~") else Path(place)
        return read_tree(folder / own)
    if os.path.exists(folder / CIFAR_BATCHES):
        return _torchvision_cifar10(folder, download=False)
    for tree in CIFAR_TREES:
        if os.path.exists(folder / tree):
            return read_tree(folder / tree)
    return _torchvision_cifar10(folder, download=True)


def _torchvision_cifar10(folder: Path, *, download: bool) -> ImageSet:
    from torchvision.datasets import CIFAR10

    try:
        train, test = (
            CIFAR10(str(folder), train=part, download=download) for part in (True, False)
        )
    except (RuntimeError, OSError, EOFError, HTTPException) as error:
        if download:
            fault = f"is not there and could not be downloaded ({type(error).__name__})"
            right = f"put {CIFAR_BATCHES} or {CIFAR_TREES[1]} there, or set PFL_DATA_DIR"
        else:
            fault = f"is not whole: {_damaged(folder / CIFAR_BATCHES) or one_line(error)}"
            right = f"remove {CIFAR_BATCHES} to have it downloaded again"
        raise DataError(f"data-dir = {folder}: CIFAR-10 {fault}; {right}") from None
    return ImageSet(
        train=torch.from_numpy(train.data).permute(0, 3, 1, 2).contiguous(),
        train_labels=torch.tensor(train.targets),
        test=torch.from_numpy(test.data).permute(0, 3, 1, 2).contiguous(),
        test_labels=torch.tensor(test.targets),
        classes=list(train.classes),
        key="cifar10-torchvision",
    )


def _damaged(folder: Path) -> str:
    """Return which of CIFAR-10's files is missing or another; empty if none is."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    digests = {**dict(CIFAR10.train_list), **dict(CIFAR10.test_list)}
    for name, digest in {**digests, CIFAR10.meta["filename"]: CIFAR10.meta["md5"]}.items():
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
        if not check_integrity(str(folder / name), digest):
            return f"{folder / name} has another MD5 than {digest}"
    return ""
