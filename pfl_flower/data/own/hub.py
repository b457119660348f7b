"""Data sets of Hugging Face: of its hub, from its cache, or in a folder."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pfl_flower.data.own.arrays import agree, as_points
from pfl_flower.data.own.places import candidates
from pfl_flower.data.own.points import OwnPoints, Raw, source_of
from pfl_flower.data.own.tables import labels_and_owners, raw_table
from pfl_flower.data.spec import DataSpec
from pfl_flower.support.errors import ConfigError, DataError
from pfl_flower.support.folders import own_path
from pfl_flower.support.foreign_text import one_line

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN, TESTS = "train", ("test", "validation")


def hugging_face(spec: DataSpec, *, config: str = "") -> OwnPoints:
    """Return a data set that ``datasets.load_dataset`` knows, or one that was saved to a folder.

    ``label-column`` names the labels (class names are kept), ``user-column`` whose a point is. A
    column of images, or one of lists, is the features; otherwise all other columns are. Splits
    ``train`` and ``test`` (or else ``validation``) are training and test set.

    Raises
    ------
    ConfigError, DataError
        If it is neither there nor to be had, or its columns are not of that kind.
    """
    return source_of(lambda one: _read(one, config), spec)


def _read(spec: DataSpec, config: str) -> Raw:
    parts = _load(spec, config)
    raw = _raw(parts[TRAIN], spec)
    test = next((parts[name] for name in TESTS if name in parts), None)
    if test is not None:
        other = _raw(test, spec)
        raw = replace(
            raw,
            test=(other.features, other.labels),
            test_owners=other.owners,
            key=f"{raw.key}-{other.key}",
        )
    agree(raw, f"dataset = {spec.name}")
    return raw


def _load(spec: DataSpec, config: str) -> dict[str, Dataset]:
    import datasets

    name = spec.name.partition(":")[2]
    where = f"dataset = {spec.name}"
    if not name:
        raise DataError(f"{where}: expected a name or a folder after the colon")
    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    place = _place(name, spec)
    saved = place.is_dir() and bool(list(place.glob("**/state.json")))
    if saved and config:
        right = "no config, for a folder to which one data set was saved"
        raise ConfigError(f"dataset-options = {spec.options}: expected {right}")
    try:
        if saved:
            found = datasets.load_from_disk(str(place))
        else:
            found = datasets.load_dataset(str(place) if place.exists() else name, config or None)
    except Exception as error:  # the library raises what its file systems and parsers raise
        fault = f"{type(error).__name__}: {one_line(error, 200)}"
        raise DataError(f"{where}: neither there nor to be had ({fault})") from None
    if isinstance(found, datasets.Dataset):
        return {TRAIN: found}
    parts = {str(part): data for part, data in found.items()}
    if TRAIN not in parts:
        raise DataError(f"{where}: splits {', '.join(parts)}, expected one called {TRAIN}")
    return parts


def _place(name: str, spec: DataSpec) -> Path:
    """Return the folder that a name would be: in ``data-dir``, or else in the current folder."""
    if spec.data_dir:
        for place in candidates("dataset", name, spec):
            if place.exists():
                return place
    return own_path("dataset", name)


def _raw(data: Dataset, spec: DataSpec) -> Raw:
    """Return the points of one split."""
    import datasets

    where = f"dataset = {spec.name}"
    kinds = dict(data.features)
    for key, column in (("label-column", spec.label_column), ("user-column", spec.user_column)):
        if column and column not in kinds:
            raise ConfigError(f"{key} = {column}: expected one of the columns {', '.join(kinds)}")
    others = [name for name in kinds if name not in (spec.label_column, spec.user_column)]
    wide = [name for name in others if not isinstance(kinds[name], datasets.Value)]
    key = str(data._fingerprint)
    if not wide:
        return raw_table(data.to_pandas(), spec, key)
    if len(others) > 1:
        raise DataError(
            f"{where}: columns {', '.join(others)}, expected one of images or lists, or numbers "
            "alone, beside label-column and user-column"
        )
    try:
        array = np.stack([np.asarray(point) for point in data[wide[0]]])
    except ValueError as error:
        fault = one_line(error)
        raise DataError(f"{where}: {wide[0]}: points of several shapes ({fault})") from None
    if isinstance(kinds[wide[0]], datasets.Image) and array.ndim == 4:
        array = np.moveaxis(array, -1, 1)
    features, shape = as_points(array, f"{where}: {wide[0]}")
    labels, owners = labels_and_owners(data.remove_columns(wide).to_pandas(), spec)
    return Raw(features=features, labels=labels, owners=owners, shape=shape, key=key)
