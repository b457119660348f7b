"""Whether Dirichlet shares can leave every user points enough: sizes alone, without any point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfl_flower.support.errors import ConfigError
from pfl_flower.support.seeding import seed_of

TRIES = 11
"""Of flwr_datasets, until every user has points enough."""
HOPELESS = 60
"""Users left short in a rehearsal from which a try is given up: they are nearly independent of one
another, so that none of them is short in one of 11 tries with a chance of 11 e^-60."""
REHEARSALS = 3
LARGEST = 1e6
"""Concentration at which users are alike, whatever the classes."""


@dataclass(frozen=True)
class Rehearsal:
    """Sizes as ``DirichletPartitioner`` draws them, from draws of our own.

    Attributes
    ----------
    classes : ndarray
        Number of points of each class.
    users, min_points, seed : int
        Among how many, how many each is to have at least, and of the draws.
    """

    classes: NDArray[np.int64]
    users: int
    min_points: int
    seed: int

    def hopeless(self, alpha: float) -> bool:
        """Return whether so many users are short every time that no try will do."""
        if self.users < HOPELESS:
            return False
        return all(self.short(alpha, number) >= HOPELESS for number in range(REHEARSALS))

    def short(self, alpha: float, number: int = 0) -> int:
        """Return how many users are left with too few points, in one rehearsal."""
        draw = np.random.default_rng(seed_of(self.seed, "rehearsal", number))
        held = np.zeros(self.users, dtype=np.int64)
        for points in self.classes.tolist():
            shares = draw.dirichlet(np.full(self.users, alpha))
            cuts = (np.cumsum(shares) * points).astype(np.int64)
            cuts[-1] = points
            held += np.diff(cuts, prepend=0)
        return int((held < self.min_points).sum())

    def refusal(self, alpha: float) -> ConfigError:
        """Return what is wrong with a concentration, and one that would do in a rehearsal."""
        does = alpha
        while does <= LARGEST and self.short(does):
            does *= 2
        right = f"a larger number, such as {does:.2g}" if does <= LARGEST else "a larger number"
        points = int(self.classes.sum())
        return ConfigError(
            f"partition-alpha = {alpha:g}: expected {right}, fewer users or a smaller "
            f"partition-min-points; in {TRIES} tries one of {self.users:,} users is left with "
            f"fewer than {self.min_points} of {points:,} points"
        )
