"""The data sets that take no network: digits, MNIST and its kind, synthetic users."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from pfl_flower.data.sources import Images, Source, Synthetic
from pfl_flower.data.spec import DataSpec
from pfl_flower.data.table import DATASETS
from pfl_flower.support.errors import DataError
from pfl_flower.support.folders import data_folder
from pfl_flower.support.seeding import generator

DIGITS_TRAIN = 1437


@lru_cache(maxsize=8)
def load_source(spec: DataSpec) -> Source:
    """Return the source of a spec, read once per process.

    Raises
    ------
    ConfigError
        If there is no such data set, or one of one's own cannot be made.
    DataError
        If the files are neither in the folder nor to be downloaded.
    """
    source: Source = DATASETS.make(spec.name, spec.options, spec)
    DATASETS.expect(spec.name, source, Source)
    return source


def digits(spec: DataSpec) -> Images:
    """Return the digits of scikit-learn, split once and for all."""
    return Images(*_digits(), seed=spec.seed, label_noise=spec.label_noise)


def mnist(spec: DataSpec) -> Images:
    """Return MNIST."""
    return _idx_images("MNIST", spec)


def fashion_mnist(spec: DataSpec) -> Images:
    """Return FashionMNIST."""
    return _idx_images("FashionMNIST", spec)


def _idx_images(files: str, spec: DataSpec) -> Images:
    folder = data_folder(spec.data_dir)
    train, test = _torchvision(files, folder, True), _torchvision(files, folder, False)
    return Images(train, test, seed=spec.seed, label_noise=spec.label_noise)


def synthetic_linear(spec: DataSpec, *, spread: float = 0.3, noise: float = 0.1) -> Synthetic:
    """Return users who answer by a linear model of their own."""
    return Synthetic(
        "least-squares",
        spec.features,
        spec.seed,
        spread=spread,
        noise=noise,
        label_noise=spec.label_noise,
    )


def synthetic_logistic(spec: DataSpec, *, spread: float = 0.3) -> Synthetic:
    """Return users who answer 1 or -1 with the probabilities of a model of their own."""
    return Synthetic(
        "logistic", spec.features, spec.seed, spread=spread, label_noise=spec.label_noise
    )


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
