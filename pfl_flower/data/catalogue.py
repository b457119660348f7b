"""The data sets that take no network: digits, MNIST and its kind, synthetic users."""

from __future__ import annotations

import gzip
import importlib.util
import os
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfl_flower.data.away import Away
from pfl_flower.data.consistency import check_source
from pfl_flower.data.idx_files import read_idx
from pfl_flower.data.own.places import of_test
from pfl_flower.data.sources import Images, Source
from pfl_flower.data.spec import DataSpec
from pfl_flower.data.synthetic import Synthetic
from pfl_flower.data.table import DATASETS
from pfl_flower.support.errors import DataError
from pfl_flower.support.folders import data_folder
from pfl_flower.support.seeding import generator

DIGITS_TRAIN = 1437
DIGITS_FILE = ("datasets", "data", "digits.csv.gz")
IDX_PARTS = ("train", "t10k")
IDX_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in IDX_PARTS for kind in ("images-idx3", "labels-idx1")
)


@lru_cache(maxsize=8)
def load_source(spec: DataSpec) -> Source:
    """Return the source of a spec, read once per process.

    Raises
    ------
    ConfigError
        If there is no such data set, or one of one's own cannot be made.
    DataError
        If the files are neither in the folder nor to be downloaded, or the data do not agree with
        themselves.
    """
    if spec.away:
        test = load_source(of_test(spec)).training_set() if spec.test_data else None
        return Away(spec, test)
    source: Source = DATASETS.make(spec.name, spec.options, spec)
    DATASETS.expect(spec.name, source, Source)
    check_source(spec.name, source)
    return source


def digits(spec: DataSpec) -> Images:
    """Return the digits of scikit-learn, split once and for all."""
    return Images(*_digits(), seed=spec.seed, label_noise=spec.label_noise, shape=(1, 8, 8))


def mnist(spec: DataSpec) -> Images:
    """Return MNIST."""
    return _idx_images("MNIST", spec)


def fashion_mnist(spec: DataSpec) -> Images:
    """Return FashionMNIST."""
    return _idx_images("FashionMNIST", spec)


def _idx_images(name: str, spec: DataSpec) -> Images:
    folder = data_folder(spec.data_dir)
    _download(name, folder)
    train, test = (_read_part(folder / name / "raw", part) for part in IDX_PARTS)
    return Images(
        (train[0].flatten(1), train[1]),
        (test[0].flatten(1), test[1]),
        seed=spec.seed,
        label_noise=spec.label_noise,
        shape=(1, *train[0].shape[1:]),
    )


def synthetic_linear(
    spec: DataSpec, *, spread: float = 0.3, tests: int = 0, noise: float = 0.1
) -> Synthetic:
    """Return users who answer by a linear model of their own."""
    return Synthetic(
        "least-squares",
        spec.features,
        spec.seed,
        spread=spread,
        noise=noise,
        label_noise=spec.label_noise,
        tests=tests,
    )


def synthetic_logistic(spec: DataSpec, *, spread: float = 0.3, tests: int = 0) -> Synthetic:
    """Return users who answer 1 or -1 with the probabilities of a model of their own."""
    return Synthetic(
        "logistic",
        spec.features,
        spec.seed,
        spread=spread,
        label_noise=spec.label_noise,
        tests=tests,
    )


def _digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    table = _digits_table()
    features = torch.tensor(table[:, :-1], dtype=torch.float64) / 16
    labels = torch.tensor(table[:, -1], dtype=torch.int64)
    order = torch.randperm(len(labels), generator=generator(0, "digits split"))
    train, test = order[:DIGITS_TRAIN], order[DIGITS_TRAIN:]
    return (features[train], labels[train]), (features[test], labels[test])


def _digits_table() -> NDArray[np.float64]:
    """Return scikit-learn's digits as it ships them: 64 pixels, and the label, ``(1797, 65)``.

    Its own ``load_digits`` reads the same file. Importing it takes a second of a processor, which a
    node of a site, a process for every message, would pay every time.
    """
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, *DIGITS_FILE)
        if path.exists():
            with gzip.open(path, "rt") as file:
                return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # of a version that keeps them elsewhere

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


def _read_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images = read_idx(folder / f"{part}-images-idx3-ubyte", 3)
    return images, read_idx(folder / f"{part}-labels-idx1-ubyte", 1).to(torch.int64)


def _download(name: str, folder: Path) -> None:
    """Have torchvision download what of a data set is not in the folder.

    Raises
    ------
    DataError
        If it cannot.
    """
    raw = folder / name / "raw"
    missing = [file for file in IDX_FILES if not os.path.exists(raw / file)]
    if not missing:
        return
    from torchvision import datasets

    try:
        getattr(datasets, name)(str(folder), download=True)
    except (RuntimeError, OSError, EOFError, HTTPException) as error:
        raise DataError(
            f"data-dir = {folder}: {name} is not there and could not be downloaded "
            f"({type(error).__name__}); put {', '.join(missing)} into {raw}, or set PFL_DATA_DIR"
        ) from None
