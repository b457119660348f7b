"""Whether data agree with themselves: checked once, for every source, also for one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pfl_flower.data.sources import Source
from pfl_flower.objective.losses import LOSSES
from pfl_flower.objective.user_data import UserData
from pfl_flower.support.errors import ConfigError, DataError
from pfl_flower.support.plugins import told

Value = TypeVar("Value")
BLOCK = 4096
"""Rows that are looked at together: a view of all would take as much memory as they do."""


def check_source(name: str, source: Source) -> None:
    """Refuse a source whose sizes, training set and test set do not agree.

    Raises
    ------
    DataError
        One line: the data set, what is wrong, and what would be right.
    """
    where = f"dataset = {name}"
    for attribute in ("inputs", "outputs", "most_points"):
        value = getattr(source, attribute, None)
        if attribute == "most_points" and value is None:
            continue
        if type(value) is not int or value < 1:
            raise DataError(f"{where}: {attribute} = {value!r}, expected a whole number above 0")
    sizes = _answer(where, "its shape", lambda: tuple(source.shape))
    features = source.inputs - source.bias
    if math.prod(sizes) != features or len(sizes) not in (1, 3):
        right = f"({features},), or (channels, height, width) of so many"
        raise DataError(f"{where}: shape = {sizes}, expected {right}")
    least, most = (2, source.outputs) if source.loss == "softmax" else (1, 1)
    if source.loss in LOSSES and not least <= source.outputs <= most:
        right = "2 classes or more" if least == 2 else "1"
        raise DataError(
            f"{where}: outputs = {source.outputs}, expected {right} for a {source.loss} loss"
        )
    for part, pair in _answer(where, "its training or test set", source.stored).items():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise DataError(f"{where}: its {part} set is no pair, expected features and labels")
        if part == "test" and all(
            isinstance(one, Tensor) and one.shape[:1] == (0,) for one in pair
        ):
            continue  # there need be no common test set
        _check_points(f"{where}: its {part} set", *pair, source, source.stored_inputs)
        owners = source.owners if part == "training" else source.test_owners
        if owners is not None:
            _check_owners(where, owners, part, len(pair[1]))


def _check_owners(where: str, owners: object, part: str, points: int) -> None:
    """Refuse owners that are not as many as the points, or neither numbers nor text."""
    listed = owners if isinstance(owners, Sequence) and not isinstance(owners, str) else None
    if listed is None or len({type(one) for one in listed} & {int, str}) != 1:
        raise DataError(
            f"{where}: its owners are a {type(owners).__name__}, expected a list of "
            "whole numbers, or of text"
        )
    if len(listed) != points:
        raise DataError(
            f"{where}: it has {len(listed):,} owners, expected one for each of its "
            f"{points:,} {part} points"
        )


def check_draw(name: str, source: Source, points: int, seed: int) -> None:
    """Refuse a source that does not give user 0 so many points, and the same ones every time.

    Raises
    ------
    DataError
        One line: the data set, what is wrong, and what would be right.
    """
    where = f"dataset = {name}"
    first, again = (
        _answer(where, "its draw", lambda: source.draw(0, points, seed)) for _ in range(2)
    )
    if not isinstance(first, UserData):
        raise DataError(f"{where}: its draw is a {type(first).__name__}, expected a UserData")
    drawn = f"{where}: what user 0 draws"
    _check_points(drawn, first.features, first.labels, source, source.inputs)
    if len(first.labels) != points:
        raise DataError(f"{drawn} has {len(first.labels):,} points, expected {points:,}")
    if first.weights is not None:
        raise DataError(f"{drawn} has weights, expected None: reduction says what a point counts")
    same = torch.equal(first.features, again.features) and torch.equal(first.labels, again.labels)
    if not same:
        raise DataError(f"{drawn} is not the same twice, expected a function of seed and user")


def _answer(where: str, what: str, ask: Callable[[], Value]) -> Value:
    """Return what a source answers; its exceptions are one line, with their place in its file."""
    try:
        return ask()
    except (ConfigError, DataError):
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{where}: {what} cannot be had ({told(error)})") from error


def _check_points(
    where: str, features: object, labels: object, source: Source, columns: int
) -> None:
    """Refuse points that are not as many as their labels, of other sizes, or not finite."""
    if not isinstance(features, Tensor) or not isinstance(labels, Tensor):
        kinds = f"{type(features).__name__}, {type(labels).__name__}"
        raise DataError(f"{where} is a pair of {kinds}, expected two tensors")
    if features.ndim != 2 or features.shape[1] != columns:
        shape = tuple(features.shape)
        raise DataError(f"{where} has features {shape}, expected rows of {columns:,} entries")
    if not len(features) or labels.ndim == 0 or len(features) != len(labels):
        raise DataError(
            f"{where} has {len(features):,} points and {labels.numel():,} labels, expected as "
            "many, and at least 1"
        )
    if labels.ndim != 1:
        raise DataError(f"{where} has labels {tuple(labels.shape)}, expected one for each point")
    _check_labels(where, labels, source)
    if features.dtype != torch.uint8:
        _check_features(where, features, constant=source.bias and columns == source.inputs)


def _check_features(where: str, features: Tensor, *, constant: bool) -> None:
    if not features.is_floating_point():
        raise DataError(f"{where} has features in {features.dtype}, expected floating-point ones")
    start = 0
    for block in torch.split(features, BLOCK):
        bad = ~torch.isfinite(block).all(dim=1)
        if bool(bad.any()):
            row = start + int(bad.nonzero()[0])
            raise DataError(f"{where} is not finite in row {row:,}, expected numbers")
        start += len(block)
    if constant and not bool((features[:, -1] == 1).all()):
        raise DataError(f"{where} has a last feature that is not 1, and bias is True")


def _check_labels(where: str, labels: Tensor, source: Source) -> None:
    if source.loss == "softmax" and labels.dtype != torch.int64:
        raise DataError(f"{where} has labels in {labels.dtype}, expected class numbers in int64")
    if source.loss == "softmax":
        valid = (labels >= 0) & (labels < source.outputs)
        right = f"0 to {source.outputs - 1}"
    elif source.loss == "logistic":
        valid, right = labels.abs() == 1, "1 or -1"
    else:
        valid, right = torch.isfinite(labels), "a number"
    if not bool(valid.all()):
        row = int((~valid).nonzero()[0])
        label = labels[row].item()
        raise DataError(f"{where} has the label {label} in row {row:,}, expected {right}")
