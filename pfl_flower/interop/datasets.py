"""Poisoned data of somebody's app: a wrapper of a torch or Hugging Face data set.

The wrapped data set answers ``len`` and ``[index]`` as before, which is all that a ``DataLoader``
asks for; points are changed as they are read, and the data set itself stays as it is. Transforms of
a Hugging Face data set are its own, so it is wrapped after them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pfl_flower.data.trigger import Trigger
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.seeding import generator


class Points(Protocol):
    """A data set with a length, of pairs ``(x, y)`` or of dictionaries."""

    def __len__(self) -> int:
        """Return the number of points."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return a point."""
        ...


class Changed(Dataset[Any]):
    """A data set with some of its points changed as they are read.

    Parameters
    ----------
    points : Points
        The honest one.
    chosen : sequence of int
        Which points.
    change : callable
        From ``(x, y)`` to what is read instead.
    columns : tuple of str
        What a dictionary calls x and y.
    """

    def __init__(
        self,
        points: Points,
        chosen: Sequence[int],
        change: Callable[[Any, Any], tuple[Any, Any]],
        columns: tuple[str, str],
    ) -> None:
        self.points, self.chosen = points, frozenset(chosen)
        self.change, self.columns = change, columns

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.points)

    def __getitem__(self, index: int) -> Any:
        """Return a point, changed if it is one of the chosen.

        Raises
        ------
        IndexError
            As the data set does, so that a loop over it ends.
        """
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"point {index} of {size}")
        point = self.points[index]
        if index % size not in self.chosen:
            return point
        if isinstance(point, Mapping):
            x, y = (point[name] for name in self.columns)
            made = self.change(x, y)
            return {**point, **dict(zip(self.columns, made, strict=True))}
        x, y, *rest = point
        return (*self.change(x, y), *rest)


def square(
    size: int = 3, value: float = 1.0, *, row: int = -1, column: int = -1
) -> Callable[[Any], Any]:
    """Return a trigger: ``size`` by ``size`` pixels set to ``value``, by default the lower right.

    ``row`` and ``column`` are those of its first pixel, or where negative of its last, from the
    end (BadNets, see ``Trigger``). Of tensors and arrays whose last two dimensions are the image's.

    >>> square(1, 9.0)(torch.zeros(2, 2))
    tensor([[0., 0.],
            [0., 9.]])
    """
    for name, number, least in (("size", size, 1), ("row", row, None), ("column", column, None)):
        whole = isinstance(number, int) and not isinstance(number, bool)
        if not whole or (least is not None and number < least):
            right = "a whole number" + (f" from {least}" if least else "")
            raise ConfigError(f"{name} = {one_line(number)}: expected {right}")
    patch = Trigger(size=size, row=row, column=column, value=value)

    def trigger(x: Any) -> Any:
        if not isinstance(x, Tensor | np.ndarray) or x.ndim < 2:
            raise ConfigError(
                f"trigger: expected images as tensors or arrays, not {type(x).__name__}"
            )
        return patch(x)

    return trigger


def poisoned(
    dataset: Points,
    *,
    trigger: Callable[[Any], Any] | None = None,
    share: float = 1.0,
    label: int | None = None,
    seed: int = 0,
    columns: tuple[str, str] = ("image", "label"),
) -> Changed:
    """Return a data set in which a share of the points carry a trigger and a label.

    Parameters
    ----------
    dataset : torch or Hugging Face data set
        Of pairs ``(x, y)``, or of dictionaries with ``columns``.
    trigger : callable, optional
        From x to the triggered x; by default ``square(3)`` (BadNets).
    share : float
        Share of the points, more than 0 and at most 1, rounded, at least one.
    label : int, optional
        The label that goes with the trigger; None leaves the points' own (clean labels).
    seed : int
        Of the choice of points.
    columns : tuple of str
        What a dictionary calls x and y.

    Raises
    ------
    ConfigError
        One line about the argument that is wrong.

    Examples
    --------
    >>> data = [(torch.zeros(2, 2), 0)] * 4
    >>> sum(y == 7 for _, y in poisoned(data, trigger=square(1), share=0.5, label=7))
    2
    """
    mark = square() if trigger is None else trigger
    if not callable(mark):
        raise ConfigError(f"trigger = {one_line(trigger)}: expected a function of x")
    chosen = _chosen(dataset, share, seed, columns)

    def change(x: Any, y: Any) -> tuple[Any, Any]:
        return mark(x), y if label is None else _like(y, label)

    return Changed(dataset, chosen, change, columns)


def relabelled(
    dataset: Points,
    labels: Mapping[int, int] | Callable[[int], int],
    *,
    share: float = 1.0,
    seed: int = 0,
    columns: tuple[str, str] = ("image", "label"),
) -> Changed:
    """Return a data set in which a share of the points have other labels.

    (Tolpegin, Truex, Gursoy, Liu, *Data poisoning attacks against federated learning systems*,
    2020.)

    Parameters
    ----------
    dataset, share, seed, columns
        As of ``poisoned``.
    labels : mapping or callable
        From a label to the one that is shown instead; labels that a mapping does not have stay.

    Examples
    --------
    >>> [y for _, y in relabelled([(0.0, 0), (0.0, 1)], {0: 5})]
    [5, 1]
    """
    if not isinstance(labels, Mapping) and not callable(labels):
        raise ConfigError(f"labels = {one_line(labels)}: expected a dictionary, or a function")
    chosen = _chosen(dataset, share, seed, columns)

    def change(x: Any, y: Any) -> tuple[Any, Any]:
        old = int(y)
        return x, _like(y, labels.get(old, old) if isinstance(labels, Mapping) else labels(old))

    return Changed(dataset, chosen, change, columns)


def _chosen(dataset: Any, share: float, seed: int, columns: Any) -> list[int]:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ConfigError(
            f"dataset = {type(dataset).__name__}: expected a data set with len and [index]"
        )
    if not len(dataset):
        raise ConfigError("dataset = empty: expected at least one point")
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not number or not 0 < share <= 1:
        raise ConfigError(f"share = {one_line(share)}: expected more than 0, at most 1")
    if not isinstance(columns, Sequence) or isinstance(columns, str) or len(columns) != 2:
        raise ConfigError(f"columns = {one_line(columns)}: expected the names of x and of y")
    first = dataset[0]
    if isinstance(first, Mapping):
        for name in columns:
            if name not in first:
                known = one_line(", ".join(map(str, first)))
                raise ConfigError(f"columns = {one_line(name)}: expected one of {known}")
    elif not isinstance(first, Sequence) or len(first) < 2:
        raise ConfigError(
            f"dataset: expected points (x, y) or dictionaries, not {type(first).__name__}"
        )
    draw = generator(seed, "poisoned points")
    # Halves upwards, where Python rounds to even numbers.
    count = max(1, int(share * len(dataset) + 0.5))
    order: list[int] = torch.randperm(len(dataset), generator=draw)[:count].tolist()
    return order


def _like(old: Any, label: int) -> Any:
    """Return a label in the form of another: a tensor where that is one."""
    if isinstance(old, Tensor):
        return torch.full_like(old, label)
    if isinstance(old, np.generic | np.ndarray):
        return np.full_like(old, label)
    return label
