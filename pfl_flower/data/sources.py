"""Where users get their points: a user's draw is a pure function of the seed and the user's id.

Without replacement within a user, independent across users, whatever node the user lives on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from pfl_flower.objective.user_data import UserData
from pfl_flower.support.errors import DataError
from pfl_flower.support.seeding import generator, user_rows


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
    """

    inputs: int
    outputs: int
    loss: str
    most_points: int | None = None
    bias: bool = False
    key: str = ""

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
        """Return features ``(m, q)`` and labels ``(m,)`` that no user has seen."""

    @abstractmethod
    def training_set(self) -> tuple[Tensor, Tensor]:
        """Return the points from which an attacker learns a target, ``(n, q)`` and ``(n,)``."""


class Images(Source):
    """Classified images: features in [0, 1] and a constant 1, labels 0 .. c - 1.

    Parameters
    ----------
    train, test : tuple of Tensor
        Features ``(n, p)`` and class numbers ``(n,)``. Bytes stand for 255ths; bytes and float16
        are kept as they are and become float32 when they are drawn.
    label_noise : float
        Fraction of the training labels redrawn uniformly among all classes, in [0, 1].
    seed : int
        Of that redrawing.
    key : str
        See ``Source``.
    """

    loss = "softmax"
    bias = True

    def __init__(
        self,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        *,
        label_noise: float = 0.0,
        seed: int = 0,
        key: str = "",
    ) -> None:
        self._features, labels = train
        self._test = test
        self.key = key
        self.inputs = self._features.shape[1] + 1
        self.most_points = len(labels)
        self.outputs = int(labels.max()) + 1
        self._labels = redraw_labels(labels, self.outputs, label_noise, generator(seed, "noise"))

    def draw(self, user: int, points: int, seed: int) -> UserData:
        """Return ``points`` training points, drawn without replacement."""
        if points > len(self._labels):
            raise DataError(f"points-per-user = {points}: expected <= {len(self._labels)}")
        order = torch.randperm(len(self._labels), generator=generator(seed, "draw", user))
        return UserData(ready(self._features[order[:points]]), self._labels[order[:points]])

    def test_set(self) -> tuple[Tensor, Tensor]:
        """Return the test images, never noised."""
        return ready(self._test[0]), self._test[1]

    def training_set(self) -> tuple[Tensor, Tensor]:
        """Return all training images, with the noise if there is any."""
        return ready(self._features), self._labels


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


class Synthetic(Source):
    """Users with known preferred models ``theta_dagger_n`` (Theorems 2 and 3).

    ``theta_dagger_n = common + spread * N(0, I)``, queries ``Q ~ N(0, I)``, and

    * ``least-squares``: ``A = Q^T theta_dagger_n + noise * N(0, 1)``;
    * ``logistic``: ``A = 1`` with probability ``sigma(Q^T theta_dagger_n)``, else -1.

    The test set is answered by the common model. A fraction ``label_noise`` of the answers is
    redrawn: from ``N(0, 1)``, or as a fair coin.

    Parameters
    ----------
    loss : {"least-squares", "logistic"}
        What is answered.
    features : int
        Dimension d of queries and models; there is no bias.
    seed : int
        Of the common model and the test set.
    spread, noise : float
        Standard deviations.
    label_noise : float
        Fraction of answers redrawn.
    """

    outputs = 1
    TEST_POINTS = 1000
    TRAINING_POINTS = 5000

    def __init__(
        self,
        loss: str,
        features: int,
        seed: int,
        *,
        spread: float = 0.3,
        noise: float = 0.1,
        label_noise: float = 0.0,
    ) -> None:
        self.loss, self.inputs, self.seed = loss, features, seed
        self.spread, self.noise, self.label_noise = spread, noise, label_noise
        self.common = self._normal(generator(seed, "common"), features)

    @staticmethod
    def _normal(draw: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    def preferred(self, user: int) -> Tensor:
        """Return theta_dagger_n of a user, ``(d,)``."""
        own = self._normal(generator(self.seed, "preferred", user), self.inputs)
        return self.common + self.spread * own

    def answer(self, model: Tensor, points: int, draw: torch.Generator) -> UserData:
        """Return random queries ``(points, d)`` answered by ``model (d,)``."""
        queries = self._normal(draw, points, self.inputs)
        scores = queries @ model
        if self.loss == "least-squares":
            answers = scores + self.noise * self._normal(draw, points)
            redrawn = self._normal(draw, points)
        else:
            coin = torch.rand(points, generator=draw, dtype=torch.float64)
            answers = torch.where(coin < torch.sigmoid(scores), 1.0, -1.0)
            fair = torch.rand(points, generator=draw, dtype=torch.float64)
            redrawn = torch.where(fair < 0.5, 1.0, -1.0)
        chosen = torch.randperm(points, generator=draw)[: round(self.label_noise * points)]
        answers[chosen] = redrawn[chosen].to(answers.dtype)
        return UserData(queries, answers)

    def draw(self, user: int, points: int, seed: int) -> UserData:
        """Return ``points`` queries answered by the user's preferred model."""
        return self.answer(self.preferred(user), points, generator(seed, "draw", user))

    def draw_many(self, users: Sequence[int], points: int, seed: int) -> UserData:
        """Return the same draws; per user only what its own generators must do."""
        if self.label_noise > 0:
            return super().draw_many(users, points, seed)
        own = torch.empty(self.inputs, dtype=torch.float64)
        models = user_rows(
            lambda draw, _: own.normal_(generator=draw),
            [own],
            users,
            lambda user: (self.seed, "preferred", user),
        )[0]
        models = self.common + self.spread * models
        query, model = torch.empty((points, self.inputs), dtype=torch.float64), own
        score, luck = torch.empty((2, points), dtype=torch.float64)
        regression, each = self.loss == "least-squares", models.numpy()
        shown = model.numpy()

        def fill(draw: torch.Generator, position: int) -> None:
            shown[:] = each[position]
            query.normal_(generator=draw)
            torch.mv(query, model, out=score)
            if regression:
                luck.normal_(generator=draw)
            else:
                luck.uniform_(generator=draw)

        queries, scores, chance = user_rows(
            fill, [query, score, luck], users, lambda user: (seed, "draw", user)
        )
        if regression:
            return UserData(queries, scores + self.noise * chance)
        return UserData(queries, torch.where(chance < torch.sigmoid(scores), 1.0, -1.0))

    def test_set(self) -> tuple[Tensor, Tensor]:
        """Return queries answered by the common model."""
        data = self.answer(self.common, self.TEST_POINTS, generator(self.seed, "test"))
        return data.features, data.labels

    def training_set(self) -> tuple[Tensor, Tensor]:
        """Return other queries answered by the common model."""
        data = self.answer(self.common, self.TRAINING_POINTS, generator(self.seed, "training"))
        return data.features, data.labels
