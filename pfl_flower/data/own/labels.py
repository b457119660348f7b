"""Labels of one's own: classes, which are numbered, or the answers of a regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfl_flower.data.spec import DataSpec
from pfl_flower.support.errors import ConfigError, DataError

Array = NDArray[Any]


def classes_of(labels: Array, spec: DataSpec) -> tuple[Any, ...]:
    """Return the classes in order, or nothing for regression.

    Raises
    ------
    ConfigError, DataError
        If labels are none, or not what the run says of them.
    """
    told = "classification" if spec.classes and spec.task == "auto" else spec.task
    where = f"dataset = {spec.name}"
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        row = int(np.flatnonzero(~np.isfinite(labels))[0])
        raise DataError(f"{where}: label {labels[row]} in row {row + 1:,}, expected a number")
    found = tuple(np.unique(labels).tolist())
    if not _are_classes(labels, found, told):
        return ()
    if spec.classes:
        return _told_classes(found, spec.classes)
    if len(found) < 2:
        raise DataError(f"{where}: all labels are {found[0]!r}, expected 2 classes or more")
    return found


def _are_classes(labels: Array, found: tuple[Any, ...], task: str) -> bool:
    """Return whether labels are classes, as ``task`` says or as they look.

    Raises
    ------
    ConfigError
        If they cannot be what it says, or look like either.
    """
    kind = labels.dtype.kind
    decimals = kind == "f" and not all(label.is_integer() for label in found)
    if task == "regression":
        if kind not in "iuf":
            raise ConfigError(f"task = regression: expected numbers, and a label is {found[0]!r}")
        return False
    if task == "classification":
        if decimals:
            raise ConfigError("task = classification: expected classes, and labels are decimals")
        return True
    few = 2 * len(found) <= len(labels)
    if not decimals and (kind == "f" or (kind in "iu" and not few)):
        written = "whole numbers" + (" written as decimals:" if kind == "f" else ", of which")
        raise ConfigError(
            f"task = auto: expected classification or regression; labels are {written} "
            f"{len(found):,} differ among {len(labels):,}"
        )
    return not decimals


def _told_classes(found: tuple[Any, ...], classes: int) -> tuple[int, ...]:
    """Return the class numbers of a run that says how many there are.

    Raises
    ------
    ConfigError
        If a label is none of them.
    """
    for label in found:
        if not isinstance(label, int | float) or not 0 <= label < classes:
            raise ConfigError(
                f"classes = {classes}: expected labels 0 to {classes - 1}, numbered alike on every "
                f"machine, and one is {label!r}"
            )
    return tuple(range(classes))


def numbered(labels: Array, classes: tuple[Any, ...]) -> Tensor:
    """Return class numbers in int64, or answers in float64."""
    if not classes:
        return torch.from_numpy(np.asarray(labels, dtype=np.float64))
    known = np.array(classes)
    return torch.from_numpy(np.searchsorted(known, labels).astype(np.int64))
