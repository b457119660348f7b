"""Arrays of one's own: NumPy's ``.npz`` files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfl_flower.data.own.places import digest_of, place_of
from pfl_flower.data.own.points import Owners, OwnPoints, Raw, source_of
from pfl_flower.data.spec import DataSpec
from pfl_flower.support.errors import DataError
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.left_out import LeftOut

Array = NDArray[Any]
NEEDED = ("features", "labels")
FURTHER = ("users", "test_features", "test_labels", "test_users")


def npz(spec: DataSpec) -> OwnPoints:
    """Return the points of a ``.npz`` file: arrays ``features``, ``labels``, perhaps others.

    ``users (n,)`` says whose each point is; ``test_features`` and ``test_labels`` are the common
    test set, and ``test_users`` says whose each point of that is. Features are
    ``(n, p)``, or images ``(n, h, w)`` or ``(n, c, h, w)``.

    Raises
    ------
    DataError
        If the file is none, an array is missing, or they do not agree.
    """
    return source_of(_read_npz, spec)


def _read_npz(spec: DataSpec) -> Raw:
    path = place_of(spec)
    where = f"dataset = {spec.name}: {path}"
    key = digest_of([path], spec)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*NEEDED, *FURTHER) if name in file.files}
            others = sorted(set(file.files) - set(arrays))
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError, EOFError) as error:
        raise DataError(f"{where} cannot be read ({one_line(error)})") from None
    missing = [name for name in NEEDED if name not in arrays]
    if ("test_features" in arrays) != ("test_labels" in arrays):
        missing.append("test_labels" if "test_features" in arrays else "test_features")
    if "test_users" in arrays:
        missing += [name for name in ("users", "test_features") if name not in arrays]
    if missing:
        raise DataError(f"{where} has no array {', '.join(missing)}, expected it")
    features, shape = as_points(arrays["features"], f"{where}: features")
    test = None
    if "test_features" in arrays:
        test = (
            as_points(arrays["test_features"], f"{where}: test_features")[0],
            as_labels(arrays["test_labels"], f"{where}: test_labels"),
        )
    raw = Raw(
        features=features,
        labels=as_labels(arrays["labels"], f"{where}: labels"),
        owners=_owners(arrays, "users", where),
        test=test,
        test_owners=_owners(arrays, "test_users", where),
        shape=shape,
        key=key,
        left_out=(LeftOut.of("arrays of other names", others),) if others else (),
    )
    agree(raw, where)
    return raw


def _owners(arrays: Mapping[str, Array], name: str, where: str) -> Owners:
    return as_owners(arrays[name], f"{where}: {name}") if name in arrays else None


def as_points(array: Array, where: str) -> tuple[Array, tuple[int, ...]]:
    """Return features ``(n, p)`` in float64, or in bytes, and the shape of a point if it has one.

    Raises
    ------
    DataError
        If they are no numbers, or not finite.
    """
    if array.dtype.kind not in "biuf" or not 2 <= array.ndim <= 4 or not array.size:
        raise DataError(
            f"{where} are {array.dtype} {array.shape}, expected numbers (n, p), (n, h, w) or "
            "(n, c, h, w)"
        )
    shape = {2: (), 3: (1, *array.shape[1:]), 4: array.shape[1:]}[array.ndim]
    flat = array.reshape(len(array), -1)
    if flat.dtype != np.uint8:
        flat = flat.astype(np.float64)
        bad = ~np.isfinite(flat).all(axis=1)
        if bad.any():
            row = int(np.argmax(bad)) + 1
            raise DataError(f"{where} are not finite in row {row:,}, expected numbers")
    return flat, tuple(shape)


def as_labels(array: Array, where: str) -> Array:
    """Return labels ``(n,)``.

    Raises
    ------
    DataError
        If they are neither numbers, truth values nor text, or not one for a point.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "biufU":
        raise DataError(
            f"{where} are {array.dtype} {array.shape}, expected one number or text for each point"
        )
    return array


def as_owners(array: Array, where: str) -> Owners:
    """Return whose each point is.

    Raises
    ------
    DataError
        If that is neither whole numbers nor text, one for each point.
    """
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise DataError(
            f"{where} are {array.dtype} {array.shape}, expected a whole number or text for each "
            "point"
        )
    return array.tolist()


def agree(raw: Raw, where: str) -> None:
    """Refuse arrays of which one has more points than another.

    Raises
    ------
    DataError
        One line with both numbers.
    """
    pairs = [("labels", raw.labels, raw.features)]
    if raw.owners is not None:
        pairs.append(("users", np.asarray(raw.owners), raw.features))
    if raw.test is not None:
        pairs.append(("test_labels", raw.test[1], raw.test[0]))
        if raw.test_owners is not None:
            pairs.append(("test_users", np.asarray(raw.test_owners), raw.test[0]))
        if raw.test[0].shape[1] != raw.features.shape[1]:
            raise DataError(
                f"{where}: test points have {raw.test[0].shape[1]:,} features, expected "
                f"{raw.features.shape[1]:,}"
            )
    for name, array, points in pairs:
        if len(array) != len(points):
            raise DataError(f"{where}: {len(array):,} {name} of {len(points):,} points")
