"""Where users get their points: a user's draw is a pure function of the seed and the user's id.

Without replacement within a user, independent across users, whatever node the user lives on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from pfl_flower.objective.user_data import UserData
from pfl_flower.support.errors import DataError
from pfl_flower.support.left_out import LeftOut
from pfl_flower.support.seeding import generator


class Source(ABC):
    """Where users get their points.

    Attributes
    ----------
    inputs : int
        Number of features q, the constant one included.
    outputs : int
        Number of scores: classes, or 1.
    loss : str
        The loss the labels are made for.
    most_points : int or None
        Points that one user can draw, where that is limited.
    bias : bool
        Whether the last feature is the constant 1.
    key : str
        What tells these data from others of the same name: a digest of files; empty where the
        name says all.
    left_out : sequence of LeftOut
        What was there and is not among the points; a run tells it at its end.
    tested : bool
        Whether users keep points for test sets of their own.
    owners, test_owners : sequence or None
        Whose each point of the training and of the test set is, numbers or text, ``(n,)``; None
        where nobody says.
    names : sequence
        Whose points each user has, numbers or text, in the order of their ids; empty where nobody
        says.
    at_hand : bool
        Whether users' points can be had on this machine.
    """

    inputs: int
    outputs: int
    loss: str
    most_points: int | None = None
    bias: bool = False
    key: str = ""
    left_out: Sequence[LeftOut] = ()
    tested: bool = False
    owners: Sequence[int] | Sequence[str] | None = None
    test_owners: Sequence[int] | Sequence[str] | None = None
    names: Sequence[int] | Sequence[str] = ()
    at_hand: bool = True

    @abstractmethod
    def draw(self, user: int, points: int, seed: int) -> UserData:
        """Return the user's own dataset of ``points`` points."""

    def draw_many(self, users: Sequence[int], points: int, seed: int) -> UserData:
        """Return what ``draw`` gives each of several users, stacked: ``(k, points, q)``."""
        first = self.draw(users[0], points, seed)
        features = first.features.new_empty((len(users), *first.features.shape))
        labels = first.labels.new_empty((len(users), *first.labels.shape))
        for row, user in enumerate(users):
            data = self.draw(user, points, seed) if row else first
            features[row], labels[row] = data.features, data.labels
        return UserData(features, labels)

    @abstractmethod
    def test_set(self) -> tuple[Tensor, Tensor]:
        """Return features ``(m, q)`` and labels ``(m,)`` that no user has seen; m may be 0."""

    @abstractmethod
    def training_set(self) -> tuple[Tensor, Tensor]:
        """Return the points from which an attacker learns a target, ``(n, q)`` and ``(n,)``."""

    def stored(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return training and test set as they are kept, to be looked at as a whole."""
        return {"training": self.training_set(), "test": self.test_set()}

    @property
    def stored_inputs(self) -> int:
        """How many features are kept of a point."""
        return self.inputs

    def take(self, rows: Tensor, *, clean: bool = False) -> UserData:
        """Return points of the training set by their numbers; ``clean`` without label noise."""
        features, labels = self._training
        return UserData(features[rows], labels[rows])

    @cached_property
    def _training(self) -> tuple[Tensor, Tensor]:
        return self.training_set()

    def size(self, user: int) -> int | None:
        """Return how many points a user has to train on; None where it draws what it is asked."""
        return None

    def own_tests(self, user: int) -> UserData | None:
        """Return the points that a user keeps for a test set of its own; None without any."""
        return None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of a point without the constant feature: ``(channels, height, width)``, or one row.

        A source of images sets it; its features are the pixels in this order.
        """
        return (self.inputs - self.bias,)


class Stored(Source):
    """Points that are kept: features as numbers, to which a constant 1 is added, and labels.

    A subclass says ``loss`` and ``outputs``.

    Parameters
    ----------
    train, test : tuple of Tensor
        Features ``(n, p)`` and labels ``(n,)``. Bytes stand for 255ths; bytes and float16 are kept
        as they are and become float32 when they are drawn.
    label_noise : float
        Fraction of the training labels, class numbers, redrawn uniformly among all classes.
    seed : int
        Of that redrawing.
    key, left_out, owners
        See ``Source``.
    shape : tuple of int, optional
        Of a point that is an image, ``(channels, height, width)``.
    """

    bias = True

    def __init__(
        self,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        *,
        label_noise: float = 0.0,
        seed: int = 0,
        key: str = "",
        left_out: Sequence[LeftOut] = (),
        owners: Sequence[int] | Sequence[str] | None = None,
        shape: tuple[int, ...] = (),
    ) -> None:
        self._train, self._test = train, test
        self.key, self.left_out, self.owners = key, left_out, owners
        features, labels = train
        self.inputs = features.shape[1] + 1
        self.shape = shape or (features.shape[1],)
        self.most_points = len(labels)
        self._noise = label_noise, seed

    @cached_property
    def _labels(self) -> Tensor:
        fraction, seed = self._noise
        if not fraction:
            return self._train[1]
        return redraw_labels(self._train[1], self.outputs, fraction, generator(seed, "noise"))

    def draw(self, user: int, points: int, seed: int) -> UserData:
        """Return ``points`` training points, drawn without replacement."""
        if points > len(self._labels):
            raise DataError(f"points-per-user = {points}: expected <= {len(self._labels)}")
        order = torch.randperm(len(self._labels), generator=generator(seed, "draw", user))
        return UserData(ready(self._train[0][order[:points]]), self._labels[order[:points]])

    def test_set(self) -> tuple[Tensor, Tensor]:
        """Return the test points, never noised."""
        return ready(self._test[0]), self._test[1]

    def training_set(self) -> tuple[Tensor, Tensor]:
        """Return all training points, with the noise if there is any."""
        return ready(self._train[0]), self._labels

    def stored(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the points as they are kept, which takes no further memory; without noise."""
        return {"training": self._train, "test": self._test}

    @property
    def stored_inputs(self) -> int:
        """All but the constant one."""
        return self.inputs - 1

    def take(self, rows: Tensor, *, clean: bool = False) -> UserData:
        """Return points by their numbers; ``clean`` with the labels that they came with."""
        labels = self._train[1] if clean else self._labels
        return UserData(ready(self._train[0][rows]), labels[rows])


class Images(Stored):
    """Classified images: features in [0, 1] and a constant 1, labels 0 .. c - 1."""

    loss = "softmax"

    @cached_property
    def outputs(self) -> int:  # type: ignore[override]
        """Number of classes c."""
        labels = self._train[1]
        return int(labels.max()) + 1 if len(labels) else 0


def ready(stored: Tensor) -> Tensor:
    """Return features ``(n, p)``, kept as bytes or float16 perhaps, as ``(n, p + 1)`` floats.

    >>> import torch
    >>> ready(torch.tensor([[0, 51, 255]], dtype=torch.uint8))
    tensor([[0.0000, 0.2000, 1.0000, 1.0000]])
    """
    compact = stored.dtype in (torch.uint8, torch.float16)
    dtype = torch.float32 if compact else stored.dtype
    features = torch.ones((len(stored), stored.shape[1] + 1), dtype=dtype)
    features[:, :-1] = stored
    if stored.dtype == torch.uint8:
        features[:, :-1] /= 255
    return features


def redraw_labels(labels: Tensor, classes: int, fraction: float, draw: torch.Generator) -> Tensor:
    """Return labels of which ``round(fraction n)``, chosen at random, are redrawn uniformly."""
    count = round(fraction * len(labels))
    chosen = torch.randperm(len(labels), generator=draw)[:count]
    noised = labels.clone()
    noised[chosen] = torch.randint(classes, (count,), generator=draw)
    return noised
