"""Users who estimate a mean of their own: everybody's response to rho, and where rho rests.

User n holds m numbers about a mean ``mu_n`` of its own, and ``L_n`` is half their squared error:
``theta_n`` is its average ``y_n`` but for R. With ``kappa = lam/m``,

    squared l2   theta_n = (1 - w) y_n + w rho,   w = 2 lam/(m + 2 lam)
    l2           theta_n = y_n + clip(rho - y_n, -kappa, kappa)
    smooth l2    theta_n = y_n + kappa z/sqrt(1 + z^2),   z = rho - theta_n

and the report is ``m (theta_n - y_n)``. Under squared l2 a rule that moves with its rows rests
where ``rho = rule(y)``: that is the interpolation of Allouah et al. 2024, between a user's own
average and a robust one, with their lambda for w.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from pfl_flower.aggregation.rules import median, trimmed_mean
from pfl_flower.support.seeding import generator

Array = NDArray[np.float64]
BISECTIONS = 50
"""Halvings of an interval, to the last digit of a number of its size."""
NEWTON = 12
"""Steps of Newton's method; the slowest, far out, takes nine to the last digit."""


@dataclass(frozen=True)
class World:
    """How users differ, and how many lie.

    Attributes
    ----------
    users, strategic : int
        n of them in all, and f who lie.
    points : int
        m, of each.
    noise, apart : float
        sigma, the deviation of a point about its user's mean, and sigma_h, of these means.
    """

    users: int = 600
    strategic: int = 100
    points: int = 20
    noise: float = 15.0
    apart: float = 2.0

    @property
    def own(self) -> float:
        """``s^2 = sigma^2/m``, the squared error of a user's own average."""
        return self.noise**2 / self.points

    @property
    def honest(self) -> int:
        """How many do not lie."""
        return self.users - self.strategic


@dataclass(frozen=True)
class Means:
    """Honest users.

    Attributes
    ----------
    truth, average : ndarray
        mu_n and y_n, ``(N,)``; the mean of all mu is 0.
    """

    truth: Array
    average: Array

    @classmethod
    def of(cls, world: World, seed: int) -> Self:
        """Draw the honest users of a world; the first of more users are those of fewer."""
        draw = generator(seed, "means")
        both = torch.randn((world.users, 1 + world.points), generator=draw, dtype=torch.float64)
        drawn = both.numpy()[: world.honest]
        truth = world.apart * drawn[:, 0]
        return cls(truth, truth + world.noise * drawn[:, 1:].mean(axis=1))


Response = Callable[[Array, Array | float, float], Array]
"""From averages ``y_n``, rho and kappa to ``theta_n``."""


def l2(average: Array, rho: Array | float, kappa: float) -> Array:
    """Return theta_n under l2."""
    moved: Array = average + np.clip(rho - average, -kappa, kappa)
    return moved


def smooth_l2(average: Array, rho: Array | float, kappa: float) -> Array:
    """Return theta_n under smooth l2: the root of ``theta - y - kappa z/sqrt(1 + z^2)``."""
    way = abs(rho - average)
    # z + kappa z/sqrt(1 + z^2) = way, concave in z: from its left Newton's steps rise to the root.
    z = way / (1 + kappa)
    for _ in range(NEWTON):
        root = np.sqrt(1 + z**2)
        z = z - (z + kappa * z / root - way) / (1 + kappa / root**3)
    found: Array = rho - np.sign(rho - average) * z
    return found


RESPONSES: Mapping[str, Response] = {"l2": l2, "smooth l2": smooth_l2}
"""Of the regularisers under which a report is at most lam."""


def bounded_rest(response: Response, average: Array, kappa: float, strategic: int) -> float:
    """Return where rho rests under the sum, if so many liars all pull up with their whole lam.

    The root of ``sum_n (theta_n - y_n) = strategic kappa``, which grows with rho; infinite where
    liars are as many as honest users.
    """
    if strategic >= len(average):
        return float("inf")

    def pull(rho: float) -> float:
        return float((response(average, rho, kappa) - average).sum())

    low, high = float(average.min()), float(average.max())
    while pull(high) < strategic * kappa:
        high += high - low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if pull(middle) < strategic * kappa else (low, middle)
    return low


FAR = 1e6
"""Where liars stand whom nothing bounds: beyond all averages."""
RULES: Mapping[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "median": lambda rows, f: median(rows),
    "trimmed mean": lambda rows, f: trimmed_mean(rows, tolerance=f),
}
"""The rules that hold rho under squared l2, as the aggregation has them."""


def ruled_rest(rule: str, average: Array, strategic: int, tolerance: int) -> float:
    """Return ``rule(y)`` of all averages and of liars who stand ``FAR`` up."""
    rows = torch.from_numpy(np.concatenate([average, np.full(strategic, FAR)]))[:, None]
    return float(RULES[rule](rows, tolerance)[0]) / len(rows)


def interpolated(means: Means, rho: float, weight: Array | float) -> Array:
    """Return ``(1 - w) y_n + w rho``, ``(N,)`` or for each weight a row."""
    share = np.asarray(weight)[..., None]
    found: Array = (1 - share) * means.average + share * rho
    return found


def error(means: Means, theta: Array) -> Array:
    """Return the mean over users of ``(theta_n - mu_n)^2``."""
    return np.asarray(((theta - means.truth) ** 2).mean(axis=-1))


def best_weight(means: Means, rho: float) -> float:
    """Return the w of least error: the error is a parabola in it."""
    own, common = means.average - means.truth, rho - means.truth
    slope = own - common
    return float((own @ slope) / (slope @ slope))
