"""From points as they were read to a source: classes numbered, a test set kept, columns scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfl_flower.data.own.scaling import scaling
from pfl_flower.data.sources import Stored
from pfl_flower.data.spec import DataSpec
from pfl_flower.support.errors import ConfigError, DataError
from pfl_flower.support.left_out import LeftOut
from pfl_flower.support.seeding import generator

Array = NDArray[Any]
Owners = Sequence[int] | Sequence[str] | None


@dataclass(frozen=True, kw_only=True)
class Raw:
    """Points as they were read.

    Attributes
    ----------
    features : ndarray
        ``(n, p)``, float64, or bytes that stand for 255ths.
    labels : ndarray
        ``(n,)``: whole numbers, truth values or text for classes; other numbers for regression.
    owners : sequence or None
        Whose each point is; None where nobody says.
    test : tuple of ndarray or None
        Features and labels of a test set that came with them.
    columns : tuple of str
        What the features are called; empty where they have no names.
    shape : tuple of int
        Of a point, where that is more than a list of numbers: ``(channels, height, width)``.
    key : str
        A digest of what was read; empty where nothing tells these points from others.
    left_out : tuple of LeftOut
        What lay beside them and was not read.
    """

    features: Array
    labels: Array
    owners: Owners = None
    test: tuple[Array, Array] | None = None
    columns: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    key: str = ""
    left_out: tuple[LeftOut, ...] = ()


class OwnPoints(Stored):
    """Points of one's own, with a constant 1 as last feature.

    Attributes
    ----------
    classes : tuple
        What the class numbers stand for, in their order; empty for regression.
    """

    def __init__(
        self,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        *,
        classes: tuple[Any, ...],
        raw: Raw,
        spec: DataSpec,
    ) -> None:
        self.loss = "softmax" if classes else "least-squares"
        self.classes, self.outputs = classes, len(classes) or 1
        super().__init__(
            train,
            test,
            label_noise=spec.label_noise,
            seed=spec.seed,
            key=raw.key,
            left_out=raw.left_out,
            owners=raw.owners,
            shape=raw.shape,
        )


def source_of(raw: Raw, spec: DataSpec) -> OwnPoints:
    """Return points of one's own as a run's source.

    Without a test set of theirs, a fraction ``holdout`` of the points is kept for one, the same in
    every run; of an owner's points one at least stays.

    Raises
    ------
    ConfigError, DataError
        One line: the key, or the data set, what is wrong, and what would be right.
    """
    where = f"dataset = {spec.name}"
    if raw.owners is None and spec.user_column:
        raise DataError(f"{where}: expected points that say whose they are, as user-column does")
    classes = _classes(raw, spec)
    if not classes and spec.label_noise > 0:
        raise ConfigError(f"label-noise = {spec.label_noise:g}: expected 0, for regression")
    raw = _with_test(raw, spec)
    assert raw.test is not None
    train, test = (
        (features, _labels(labels, classes))
        for features, labels in ((raw.features, raw.labels), raw.test)
    )
    move, notes = scaling(raw.features, raw.columns, spec)
    raw = replace(raw, left_out=(*raw.left_out, *notes))
    return OwnPoints(
        (torch.from_numpy(move(train[0])), train[1]),
        (torch.from_numpy(move(test[0])), test[1]),
        classes=classes,
        raw=raw,
        spec=spec,
    )


def _classes(raw: Raw, spec: DataSpec) -> tuple[Any, ...]:
    """Return the classes in order, or nothing for regression."""
    parts = [raw.labels] if raw.test is None else [raw.labels, raw.test[1]]
    labels = np.concatenate([np.asarray(part) for part in parts])
    where = f"dataset = {spec.name}"
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        row = int(np.flatnonzero(~np.isfinite(labels))[0])
        raise DataError(f"{where}: label {labels[row]} in row {row + 1:,}, expected a number")
    found = tuple(np.unique(labels).tolist())
    if not _are_classes(labels, found, spec.task):
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


def _labels(labels: Array, classes: tuple[Any, ...]) -> Tensor:
    """Return class numbers in int64, or answers in float64."""
    if not classes:
        return torch.from_numpy(np.asarray(labels, dtype=np.float64))
    known = np.array(classes)
    return torch.from_numpy(np.searchsorted(known, labels).astype(np.int64))


def _with_test(raw: Raw, spec: DataSpec) -> Raw:
    """Return the points with a test set: theirs, or some of them."""
    if raw.test is not None:
        return raw
    points = len(raw.labels)
    asked = max(1, round(spec.holdout * points)) if spec.holdout > 0 else 0
    if not asked:
        raise ConfigError(f"holdout = {spec.holdout:g}: expected more, for data without a test set")
    # Not of the run's seed: runs of several seeds are measured by the same points.
    order = torch.randperm(points, generator=generator(0, "holdout")).numpy()
    kept = _first_of_each(order, raw.owners)
    free = order[~kept]
    test, train = np.sort(free[:asked]), np.sort(np.concatenate([order[kept], free[asked:]]))
    if not len(test) or not len(train):
        raise DataError(
            f"dataset = {spec.name}: {points:,} points, expected more than one of some user, to "
            "keep some for a test set"
        )
    owners = None if raw.owners is None else [raw.owners[row] for row in train]
    return replace(
        raw,
        features=raw.features[train],
        labels=raw.labels[train],
        owners=owners,
        test=(raw.features[test], raw.labels[test]),
    )


def _first_of_each(order: NDArray[np.int64], owners: Owners) -> NDArray[np.bool_]:
    """Return which entries of an order are the first of their owner's."""
    first = np.zeros(len(order), dtype=bool)
    if owners is not None:
        first[np.unique(np.asarray(owners)[order], return_index=True)[1]] = True
    return first
