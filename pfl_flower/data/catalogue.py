"""The data sets by name: digits, MNIST and its kind, image folders, synthetic users."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from pfl_flower.data.embeddings import image_source, is_image_set
from pfl_flower.data.sources import Images, Source, Synthetic
from pfl_flower.data.spec import DataSpec
from pfl_flower.support.errors import DataError
from pfl_flower.support.folders import data_folder
from pfl_flower.support.seeding import generator

DIGITS_TRAIN = 1437
IMAGE_SETS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


@lru_cache(maxsize=8)
def load_source(spec: DataSpec) -> Source:
    """Return the source of a spec, read once per process.

    Raises
    ------
    DataError
        If the name is unknown, or if the files are neither in the folder nor to be downloaded.
    """
    noise = spec.label_noise
    if spec.name == "digits":
        return Images(*_digits(), seed=spec.seed, label_noise=noise)
    if spec.name in IMAGE_SETS:
        folder = data_folder(spec.data_dir)
        files = IMAGE_SETS[spec.name]
        train, test = _torchvision(files, folder, True), _torchvision(files, folder, False)
        return Images(train, test, seed=spec.seed, label_noise=noise)
    if spec.name == "synthetic-linear":
        return Synthetic("least-squares", spec.features, spec.seed, label_noise=noise)
    if spec.name == "synthetic-logistic":
        return Synthetic("logistic", spec.features, spec.seed, label_noise=noise)

    if is_image_set(spec.name):
        return image_source(spec)
    raise DataError(f"dataset = {spec.name}: unknown")


def _digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    features = torch.tensor(digits.data, dtype=torch.float64) / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=generator(0, "digits split"))
    train, test = order[:DIGITS_TRAIN], order[DIGITS_TRAIN:]
    return (features[train], labels[train]), (features[test], labels[test])


def _torchvision(name: str, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    from torchvision import datasets

    kind = getattr(datasets, name)
    try:
        try:
            images = kind(str(folder), train=train, download=False)
        except RuntimeError:
            images = kind(str(folder), train=train, download=True)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"data-dir = {folder}: {name} is not there and could not be downloaded; put "
            f"torchvision's {name}/raw files there, or set PFL_DATA_DIR ({type(error).__name__})"
        ) from None
    return images.data.reshape(len(images.data), -1), images.targets.to(torch.int64)
