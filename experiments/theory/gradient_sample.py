"""An honest dataset and the slopes ``u^T grad L(theta_dagger + r u)`` that Definition 2 bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from experiments.studies.study import Setting
from experiments.theory.honest_users import answers
from experiments.theory.pac import NOISE, NU
from experiments.theory.queries import cube_queries, normal_queries
from pfl_flower.objective.losses import LOSSES
from pfl_flower.support.seeding import generator

QUERIES = {"least-squares": normal_queries, "logistic": cube_queries}
DIRECTIONS = 16
STEPS, ANGLES = 8, (0.4, 0.1, 0.025)
"""Descents on the sphere, and the lengths of a step that they choose from."""


@dataclass(frozen=True)
class Sample:
    """One honest dataset and ``f(r, u) = u^T grad L(theta_dagger + r u)`` in many directions."""

    loss: str
    queries: Tensor
    labels: Tensor
    preferred: Tensor

    @classmethod
    def draw(
        cls, setting: Setting, loss: str, points: int, *turn: str | int, length: float
    ) -> Sample:
        """Draw theta_dagger of a length and I honest answers; in the control, noise answers."""
        draw = generator(setting.seed, "gradient-pac", loss, points, *turn)
        asked = QUERIES[loss](points, draw)
        direction = torch.randn(asked.shape[1], generator=draw, dtype=torch.float64)
        preferred = length * normalize(direction, dim=0)
        answered = torch.zeros_like(preferred) if setting.control else preferred
        return cls(loss, asked, answers(loss, asked, answered, draw=draw, noise=NOISE), preferred)

    @property
    def points(self) -> int:
        """I."""
        return len(self.queries)

    def gradient(self, theta: Tensor) -> Tensor:
        """``grad L(theta_m, D)``, ``(m, d)``, for ``theta (m, d)``."""
        scores = (theta @ self.queries.T)[..., None]
        pulls = LOSSES[self.loss]().gradient(scores, self.labels)[..., 0]
        return pulls @ self.queries + 2 * NU * theta

    def bends(self, theta: Tensor, directions: Tensor) -> Tensor:
        """``Hess L(theta_m, D) u_m``, ``(m, d)``, for ``theta (m, d)`` and as many directions."""
        scores = (theta @ self.queries.T)[..., None]
        pushed = (directions @ self.queries.T)[..., None]
        pulls = LOSSES[self.loss]().curvature(scores, pushed)[..., 0]
        return pulls @ self.queries + 2 * NU * directions

    def deficit(self) -> Tensor:
        """``grad L(theta_dagger, D)``, ``(d,)``."""
        return self.gradient(self.preferred[None])[0]

    def slopes(self, radius: float, directions: Tensor) -> Tensor:
        """``f(r, u_m)``, ``(m,)``, for unit ``directions (m, d)``."""
        pulls = self.gradient(self.preferred + radius * directions)
        return (pulls * directions).sum(dim=1)

    def candidates(self, draw: torch.Generator) -> Tensor:
        """Return random directions, the deficit's opposite and the flattest axis, both ways."""
        random = torch.randn((DIRECTIONS, len(self.preferred)), generator=draw, dtype=torch.float64)
        axes = torch.eye(len(self.preferred), dtype=torch.float64)
        hessian = self.bends(self.preferred.expand_as(axes), axes)
        flattest = torch.linalg.eigh(hessian).eigenvectors[:, 0]
        special = torch.stack([-self.deficit(), flattest, -flattest])
        return normalize(torch.cat([random, special]), dim=1)

    def worst(self, radius: float, directions: Tensor, tilt: Tensor) -> Tensor:
        """Minimise ``f(r, u) - u^T tilt`` over the sphere, from the two lowest directions.

        Returns
        -------
        Tensor
            The directions reached, ``(2, d)``.
        """
        heights = self.slopes(radius, directions) - directions @ tilt
        kept = directions[heights.argsort()[:2]]
        for _ in range(STEPS):
            pulls = self.gradient(self.preferred + radius * kept) - tilt
            uphill = pulls + radius * self.bends(self.preferred + radius * kept, kept)
            uphill = normalize(uphill - (uphill * kept).sum(dim=1, keepdim=True) * kept, dim=1)
            tried = torch.stack([kept, *(kept - angle * uphill for angle in ANGLES)])
            flat = normalize(tried, dim=2).flatten(0, 1)
            heights = (self.slopes(radius, flat) - flat @ tilt).view(len(tried), len(kept))
            chosen = heights.argmin(dim=0)
            kept = flat.view_as(tried)[chosen, torch.arange(len(kept))]
        return kept
