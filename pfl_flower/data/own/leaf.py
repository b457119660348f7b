"""Users with their points in the JSON of LEAF."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfl_flower.data.own.arrays import agree, as_labels, as_points
from pfl_flower.data.own.places import digest_of, place_of
from pfl_flower.data.own.points import OwnPoints, Raw, source_of
from pfl_flower.data.spec import DataSpec
from pfl_flower.support.errors import DataError
from pfl_flower.support.foreign_text import one_line

Array = NDArray[Any]


def leaf(spec: DataSpec) -> OwnPoints:
    """Return the points of LEAF's JSON, with their users: a file, or a folder of files.

    A file has ``users``, ``num_samples`` and ``user_data``, for each user ``x`` and ``y``. A folder
    may have ``train`` and ``test`` in it, of which the second is the common test set, and each
    user's part of it the user's own.

    (Caldas et al., *LEAF: a benchmark for federated settings*, 2018.)

    Raises
    ------
    DataError
        If a file is none of LEAF's, or its points are no numbers.
    """
    return source_of(_read_leaf, spec)


def _read_leaf(spec: DataSpec) -> Raw:
    path = place_of(spec)
    folders = {"train": path / "train", "test": path / "test"}
    if not folders["train"].is_dir():
        folders = {"train": path}
    files = {part: _files(folder) for part, folder in folders.items() if folder.exists()}
    key = digest_of([file for some in files.values() for file in some], spec)
    if not files.get("train"):
        raise DataError(f"dataset = {spec.name}: no .json file in {path}, expected LEAF's")
    parts = {part: _read_users(some, spec) for part, some in files.items() if some}
    features, labels, owners, shape = parts["train"]
    test, test_owners = None, None
    if "test" in parts:
        test, test_owners = parts["test"][:2], parts["test"][2]
    raw = Raw(
        features=features,
        labels=labels,
        owners=owners,
        test=test,
        test_owners=test_owners,
        shape=shape,
        key=key,
    )
    agree(raw, f"dataset = {spec.name}")
    return raw


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.json")) if path.is_dir() else [path]


def _read_users(
    files: list[Path], spec: DataSpec
) -> tuple[Array, Array, list[str], tuple[int, ...]]:
    points, labels, owners = [], [], []
    for user, x, y in (one for file in files for one in _users(file, spec)):
        points += x
        labels += y
        owners += [user] * len(y)
    where = f"dataset = {spec.name}"
    try:
        features, answers = np.asarray(points), np.asarray(labels)
    except ValueError:
        raise DataError(f"{where}: points of several lengths, expected one") from None
    flat, shape = as_points(features, f"{where}: x")
    return flat, as_labels(answers, f"{where}: y"), owners, shape


def _users(file: Path, spec: DataSpec) -> Iterator[tuple[str, list[Any], list[Any]]]:
    where = f"dataset = {spec.name}: {file}"
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{where} cannot be read ({one_line(error)})") from None
    names = content.get("users") if isinstance(content, Mapping) else None
    data = content.get("user_data") if isinstance(content, Mapping) else None
    if not isinstance(names, list) or not isinstance(data, Mapping):
        raise DataError(f"{where} has no users and user_data, expected LEAF's")
    sizes = content.get("num_samples", [])
    for place, name in enumerate(names):
        own = data.get(str(name), {})
        x, y = own.get("x"), own.get("y")
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
            raise DataError(f"{where}: user {one_line(name, 40)}: expected as many x as y")
        if place < len(sizes) and sizes[place] != len(y):
            raise DataError(
                f"{where}: user {one_line(name, 40)} has {len(y):,} points, and num_samples says "
                f"{one_line(sizes[place], 20)}"
            )
        yield str(name), x, y
