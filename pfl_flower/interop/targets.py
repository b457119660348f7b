"""The target of an attack on somebody's model: weights by layer, from a file or a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pfl_flower.interop.layers import Layout, Values
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.foreign_text import one_line

Weights: TypeAlias = Mapping[str, Any]
Target: TypeAlias = str | Path | Weights | Callable[[Mapping[str, Values]], Weights]
"""A file of weights (``.npz``, or what ``torch.save`` wrote of a state dict), the weights, or a
function of the first model that the server sends."""
EXPECTED = "a file of weights (.npz, .pt), a dictionary of layers, or a function of the layers"


def checked_target(target: object) -> Target:
    """Return a target that can be had, a file's content in its place.

    Raises
    ------
    ConfigError
        If it is none of these, or the file cannot be read.
    """
    if isinstance(target, str | Path):
        return _file(Path(target).expanduser().absolute())
    if isinstance(target, Mapping):
        return {str(name): _values(name, value) for name, value in target.items()}
    if callable(target):
        return target
    raise ConfigError(f"target = {one_line(target)}: expected {EXPECTED}")


def target_vector(target: Target, layers: Mapping[str, Values], layout: Layout) -> Tensor:
    """Return theta_dagger as a vector ``(d,)`` of the app's own layers.

    Raises
    ------
    ConfigError
        If a layer is missing, or has another shape, or is not finite.
    """
    given = (
        target({name: values.copy() for name, values in layers.items()})
        if callable(target)
        else target
    )
    if not isinstance(given, Mapping):
        raise ConfigError(f"target = {one_line(given)}: expected {EXPECTED}")
    found: dict[str, Values] = {}
    for name in layout.moved:
        if name not in given:
            known = ", ".join(map(str, given))
            raise ConfigError(f"target = {one_line(known)}: expected the layer {name} among them")
        values = _values(name, given[name])
        if values.shape != layout.shapes[name]:
            raise ConfigError(
                f"target = {name} of the shape {values.shape}: expected {layout.shapes[name]}"
            )
        if not np.isfinite(values).all():
            raise ConfigError(f"target = {name}: expected finite numbers")
        found[name] = values
    return layout.vector(found)


def _values(name: object, value: Any) -> Values:
    try:
        found = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        return found.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"target = {one_line(name)}: expected numbers") from error


def _file(path: Path) -> Weights:
    if not path.is_file():
        raise ConfigError(f"target = {path}: expected a file of weights")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                return {name: _values(name, stored[name]) for name in stored.files}
        # Weights alone: a pickle that runs code is refused.
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"target = {path}: expected a file of weights ({one_line(error)})"
        ) from None
    if not isinstance(stored, Mapping):
        raise ConfigError(f"target = {path}: expected a state dict of layers")
    return {str(name): _values(name, value) for name, value in stored.items()}
