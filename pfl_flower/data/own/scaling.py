"""How columns are scaled: not at all, by the training points, or by numbers from a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfl_flower.data.own.places import scales_file
from pfl_flower.data.spec import DataSpec
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.left_out import LeftOut

Array = NDArray[Any]
Move = Callable[[Array], Array]


def scaling(train: Array, columns: tuple[str, ...], spec: DataSpec) -> tuple[Move, list[LeftOut]]:
    """Return what makes of features ``(n, p)`` those that a run sees, and what is to be said.

    ``x -> (x - mean) / deviation`` of every column, both of all users' training points, under
    ``standardise = training``; a column that is constant is only centred. Or by the means and
    scales of a JSON file, ``{"mean": [...], "scale": [...]}``: the same on every machine.

    Raises
    ------
    ConfigError
        If the file is not there, or has other numbers than one mean and one scale above 0 for
        each column.
    """
    if spec.standardise == "off":
        return (lambda features: features), []
    if spec.standardise != "training":
        mean, scale = _from_file(spec, train.shape[1])
        return (lambda features: (_numbers(features) - mean) / scale), []
    values = _numbers(train)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    # Below rounding of a sum of equal numbers: such a column is constant.
    constant = deviation <= 1e-12 * np.maximum(1.0, np.abs(mean))
    scale = np.where(constant, 1.0, deviation)
    still = [
        columns[place] if columns else f"feature {place}" for place in np.flatnonzero(constant)
    ]
    notes = [LeftOut.of("constant columns, which were not scaled", still)] if still else []
    return (lambda features: (_numbers(features) - mean) / scale), notes


def _numbers(features: Array) -> Array:
    """Return features in float64; bytes stand for 255ths."""
    values = np.asarray(features, dtype=np.float64)
    return values / 255 if features.dtype == np.uint8 else values


def _from_file(spec: DataSpec, columns: int) -> tuple[Array, Array]:
    name, path = spec.standardise, scales_file(spec)
    assert path is not None
    right = 'off, training, or a JSON file such as {"mean": [...], "scale": [...]}'
    try:
        given = json.loads(path.read_text())
        mean, scale = (np.asarray(given[part], dtype=np.float64) for part in ("mean", "scale"))
    except OSError as error:
        raise ConfigError(
            f"standardise = {name}: expected {right} ({path}: {error.strerror})"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise ConfigError(f"standardise = {name}: expected {right} ({fault})") from None
    shapes = mean.shape == scale.shape == (columns,)
    if not shapes or not np.isfinite(mean).all() or not (scale > 0).all():
        raise ConfigError(
            f"standardise = {name}: expected {columns:,} means, and as many scales above 0, one "
            f"for each column; there are {mean.size:,} and {scale.size:,}"
        )
    return mean, scale
