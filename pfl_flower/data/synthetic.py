"""Users with known preferred models, whose answers are drawn (Theorems 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfl_flower.data.sources import Source
from pfl_flower.objective.user_data import UserData
from pfl_flower.support.seeding import generator, user_rows


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
    tests : int
        Points of a user's own test set, answered by its own model, none redrawn.
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
        tests: int = 0,
    ) -> None:
        self.loss, self.inputs, self.seed = loss, features, seed
        self.spread, self.noise, self.label_noise = spread, noise, label_noise
        self.tests, self.tested = tests, tests > 0
        self.common = self._normal(generator(seed, "common"), features)

    @staticmethod
    def _normal(draw: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    def preferred(self, user: int) -> Tensor:
        """Return theta_dagger_n of a user, ``(d,)``."""
        own = self._normal(generator(self.seed, "preferred", user), self.inputs)
        return self.common + self.spread * own

    def answer(
        self, model: Tensor, points: int, draw: torch.Generator, *, clean: bool = False
    ) -> UserData:
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
        if clean:
            return UserData(queries, answers)
        chosen = torch.randperm(points, generator=draw)[: round(self.label_noise * points)]
        answers[chosen] = redrawn[chosen].to(answers.dtype)
        return UserData(queries, answers)

    def draw(self, user: int, points: int, seed: int) -> UserData:
        """Return ``points`` queries answered by the user's preferred model."""
        return self.answer(self.preferred(user), points, generator(seed, "draw", user))

    def own_tests(self, user: int) -> UserData | None:
        """Return other queries, answered by the user's preferred model without label noise."""
        if not self.tests:
            return None
        draw = generator(self.seed, "own tests", user)
        return self.answer(self.preferred(user), self.tests, draw, clean=True)

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
