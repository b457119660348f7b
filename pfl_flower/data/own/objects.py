"""Points that a script holds: arrays, tensors, PyTorch data sets, or a list: one for each user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pfl_flower.data.own.arrays import agree, as_labels, as_points
from pfl_flower.data.own.points import OwnPoints, Raw, source_of
from pfl_flower.data.spec import DataSpec
from pfl_flower.support.errors import ConfigError, DataError

Array = NDArray[Any]
EXPECTED = "points (x, y), a PyTorch data set, or a list of either, one for each user"


class GivenPoints:
    """What was given, as a factory of a source.

    Parameters
    ----------
    data : object
        Points ``(x, y)``: features ``(n, p)`` or images ``(n, c, h, w)``, and labels ``(n,)``,
        arrays or tensors; or a PyTorch data set of such points; or a list of either, one for each
        user.

    Attributes
    ----------
    users : int or None
        How many users have points of their own; None where the points are nobody's.

    Raises
    ------
    ConfigError
        If it is none of these.
    """

    __name__ = "data"

    def __init__(self, data: object) -> None:
        listed = isinstance(data, list)
        self._parts: list[object] = list(data) if isinstance(data, list) else [data]
        self.users = len(self._parts) if listed else None
        for part in self._parts:
            if not _is_pair(part) and not _is_dataset(part):
                raise ConfigError(f"data = a {type(part).__name__}: expected {EXPECTED}")
        if not self._parts:
            raise ConfigError(f"data = []: expected {EXPECTED}")

    def __call__(self, spec: DataSpec) -> OwnPoints:
        """Return the source.

        Raises
        ------
        ConfigError, DataError
            If the points do not agree with one another.
        """
        arrays = [_arrays(part, self._where(user)) for user, part in enumerate(self._parts)]
        shapes = {features.shape[1] for features, _, _ in arrays}
        if len(shapes) > 1:
            raise DataError(f"data: users' points have {sorted(shapes)} features, expected as many")
        kinds = {labels.dtype.kind in "f" for _, labels, _ in arrays}
        if len(kinds) > 1:
            raise DataError("data: some users' labels are whole numbers, others' decimals")
        owners = [user for user, (_, labels, _) in enumerate(arrays) for _ in labels]
        raw = Raw(
            features=np.concatenate([features for features, _, _ in arrays]),
            labels=np.concatenate([labels for _, labels, _ in arrays]),
            owners=owners if self.users else None,
            shape=arrays[0][2],
        )
        return source_of(lambda _: raw, spec)

    def _where(self, user: int) -> str:
        return f"data of user {user}" if self.users else "data"


def own_data(data: object) -> dict[str, Any]:
    """Return the keys of a run on what a script holds; none where it holds nothing.

    Raises
    ------
    ConfigError
        If it is nothing that points can be had of.
    """
    if data is None:
        return {}
    points = GivenPoints(data)
    users = {"users": points.users, "partition": "natural"} if points.users else {}
    return {"dataset": points, **users}


def _is_pair(part: object) -> bool:
    return isinstance(part, tuple) and len(part) == 2


def _is_dataset(part: object) -> bool:
    return hasattr(part, "__getitem__") and hasattr(part, "__len__") and not isinstance(part, tuple)


def _arrays(part: Any, where: str) -> tuple[Array, Array, tuple[int, ...]]:
    """Return features ``(n, p)``, labels ``(n,)``, and the shape of a point."""
    if not _is_pair(part):
        if not len(part):
            raise DataError(f"{where}: no points, expected at least 1")
        points = [part[place] for place in range(len(part))]
        if not all(isinstance(point, Sequence) and len(point) == 2 for point in points):
            raise DataError(f"{where}: expected pairs (x, y) in the data set")
        part = (
            np.stack([np.asarray(x) for x, _ in points]),
            np.asarray([_number(y) for _, y in points]),
        )
    x, y = (np.asarray(one.cpu() if isinstance(one, torch.Tensor) else one) for one in part)
    features, shape = as_points(x, f"{where}: x")
    labels = as_labels(y, f"{where}: y")
    agree(Raw(features=features, labels=labels), where)
    return features, labels, shape


def _number(label: Any) -> Any:
    return label.item() if hasattr(label, "item") else label
