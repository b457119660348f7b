"""What theory says of ``means``: where rho rests among very many users, and the errors there.

With ``s^2 = sigma^2/m`` an average is ``y ~ N(0, v)``, ``v = sigma_h^2 + s^2``, and a user's mean
is known from it up to ``E[mu|y] = y sigma_h^2/v`` and ``Var[mu|y] = sigma_h^2 s^2/v``. So

    E (theta - mu)^2 = E (theta(y) - E[mu|y])^2 + Var[mu|y],

which nothing beats that uses y alone. An interpolation with rho at b makes it ``(s^2/v - w)^2 v +
w^2 b^2`` more, least at ``w = s^2/(v + b^2)``: what liars add to b must be taken from w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from experiments.heterogeneity.means import Array, Response, World

WIDE, STEPS = 7.0, 1401
"""An integral over y goes so many deviations to either side, in so many steps."""


@dataclass(frozen=True)
class Predicted:
    """What very many users of a world come to.

    Attributes
    ----------
    world : World
        Whose liars, if there are any, all pull up as far as they can.
    """

    world: World

    @property
    def spread(self) -> float:
        """``v``, the variance of an average."""
        return self.world.apart**2 + self.world.own

    @property
    def least(self) -> float:
        """The error that nothing beats which uses a user's own average alone."""
        return self.world.apart**2 * self.world.own / self.spread

    def bias(self, rule: str, tolerance: int) -> float:
        """Return where a rule of the averages rests.

        With N honest users of n: the median at their quantile ``n/(2 N)``, a trimmed mean, whose
        upper tail is all liars, at the mean of all but their lowest ``tolerance``.
        """
        lies, honest = self.world.strategic, self.world.honest
        deviation = math.sqrt(self.spread)
        if rule == "median":
            return float(deviation * norm.ppf(self.world.users / 2 / honest))
        if lies == 0:
            return 0.0
        share = tolerance / honest
        return float(deviation * norm.pdf(norm.ppf(share)) / (1 - share))

    def weight(self, bias: float) -> float:
        """Return the w of least error with rho at a bias."""
        return self.world.own / (self.spread + bias**2)

    def interpolated(self, weight: float, bias: float) -> float:
        """Return the error of an interpolation."""
        missed = self.world.own / self.spread - weight
        return missed**2 * self.spread + weight**2 * bias**2 + self.least

    def bounded(self, response: Response, kappa: float) -> tuple[float, float]:
        """Return where rho rests under a bounded R and the sum, and the error there."""
        average, mass = self._averages()
        lies = self.world.strategic / self.world.honest * kappa

        def excess(rho: float) -> float:
            return float(mass @ (response(average, rho, kappa) - average)) - lies

        edge = 100 * math.sqrt(self.spread) + 10 * kappa
        rest = float(brentq(excess, -edge, edge))
        known = average * self.world.apart**2 / self.spread
        gap = response(average, rest, kappa) - known
        return rest, float(mass @ gap**2) + self.least

    def _averages(self) -> tuple[Array, Array]:
        """Return values of y, and the probability of each."""
        units = np.linspace(-WIDE, WIDE, STEPS)
        mass = norm.pdf(units)
        return units * math.sqrt(self.spread), mass / mass.sum()
