"""From points as they were read to a source: classes numbered, a test set kept, columns scaled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfl_flower.data.own.labels import classes_of, numbered
from pfl_flower.data.own.places import of_test
from pfl_flower.data.own.scaling import scaling
from pfl_flower.data.sources import Stored
from pfl_flower.data.spec import DataSpec
from pfl_flower.support.errors import ConfigError, DataError
from pfl_flower.support.left_out import LeftOut
from pfl_flower.support.seeding import generator

Array = NDArray[Any]
Owners = Sequence[int] | Sequence[str] | None
SHOWN = 12
"""Columns that a message names."""


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
    test_owners : sequence or None
        Whose each point of that is; None where nobody says.
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
    test_owners: Owners = None
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
        self.test_owners = raw.test_owners


def source_of(read: Callable[[DataSpec], Raw], spec: DataSpec) -> OwnPoints:
    """Return points of one's own as a run's source.

    The common test set is that of ``test-data``, or the one that came with them; else a fraction
    ``holdout`` of the points is kept for one, the same in every run; of an owner's points one at
    least stays. With ``holdout`` 0 there is none.

    Parameters
    ----------
    read : callable
        What reads the points of a spec.
    spec : DataSpec
        Of the run.

    Raises
    ------
    ConfigError, DataError
        One line: the key, or the data set, what is wrong, and what would be right.
    """
    where = f"dataset = {spec.name}"
    raw = _as_told(read(spec), spec)
    if spec.test_data:
        if raw.test is not None:
            right = "empty, for data that come with a test set"
            raise ConfigError(f"test-data = {spec.test_data}: expected {right}")
        raw = _joined(raw, _as_told(read(of_test(spec)), of_test(spec)))
    if raw.owners is None and spec.user_column:
        raise DataError(f"{where}: expected points that say whose they are, as user-column does")
    classes = classes_of(_all_labels(raw), spec)
    if not classes and spec.label_noise > 0:
        raise ConfigError(f"label-noise = {spec.label_noise:g}: expected 0, for regression")
    raw = _with_test(raw, spec)
    assert raw.test is not None
    train, test = (
        (features, numbered(labels, classes))
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


def _as_told(raw: Raw, spec: DataSpec) -> Raw:
    """Return the points, if they have the sizes that a run tells, and as images if it tells so.

    Raises
    ------
    ConfigError
        If they are of another size.
    """
    found = raw.features.shape[1]
    if spec.columns and found != spec.columns:
        raise ConfigError(
            f"columns = {spec.columns}: expected {found}, the features of {spec.name}"
        )
    if not spec.shape:
        return raw
    if raw.shape and raw.shape != spec.shape:
        told, there = ("x".join(map(str, shape)) for shape in (spec.shape, raw.shape))
        raise ConfigError(f"columns = {told}: expected {there}, the shape of {spec.name}")
    return replace(raw, shape=spec.shape)


def _joined(raw: Raw, test: Raw) -> Raw:
    """Return points with those of another file as their test set."""
    if test.test is not None:
        raise DataError("test-data comes with a test set of its own, expected points alone")
    if raw.features.shape[1] != test.features.shape[1] or raw.columns != test.columns:
        has, right = (
            ", ".join(one.columns[:SHOWN]) or f"{one.features.shape[1]:,} features"
            for one in (test, raw)
        )
        raise DataError(f"test-data has {has}, expected those of the dataset: {right}")
    kinds = {one.labels.dtype.kind in "f" for one in (raw, test)}
    if len(kinds) > 1 or {one.labels.dtype.kind == "U" for one in (raw, test)} == {True, False}:
        raise DataError("test-data has labels of another kind than those of the dataset")
    return replace(
        raw,
        test=(test.features, test.labels),
        test_owners=test.owners,
        key=f"{raw.key}-{test.key}",
        left_out=(*raw.left_out, *test.left_out),
    )


def _all_labels(raw: Raw) -> Array:
    parts = [raw.labels] if raw.test is None else [raw.labels, raw.test[1]]
    return np.concatenate([np.asarray(part) for part in parts])


def _with_test(raw: Raw, spec: DataSpec) -> Raw:
    """Return the points with a test set: theirs, or some of them."""
    if raw.test is not None:
        return raw
    points = len(raw.labels)
    if spec.holdout == 0:
        return replace(raw, test=(raw.features[:0], raw.labels[:0]))
    asked = max(1, round(spec.holdout * points))
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
