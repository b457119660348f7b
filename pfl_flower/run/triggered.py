"""What a backdoor comes to: how many triggered points are taken for its label, by users."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Triggered:
    """What a trigger does to two models, on a user's own test points or on the common ones.

    Attributes
    ----------
    points : int
        Test points that are not of the label's class.
    theta, rho : float
        Share of them that the user's model, and rho, take for the label once they are triggered.
    """

    points: int
    theta: float
    rho: float


def columns() -> tuple[str, ...]:
    """Return the columns that a trigger adds to ``rounds.csv``."""
    return ("triggered_rho", "triggered_theta_mean", "triggered_theta_worst")


def metrics(found: Mapping[int, Triggered]) -> dict[str, float]:
    """Return the means over users, and the user whose model the trigger leads most often.

    >>> metrics({3: Triggered(10, 0.5, 1.0), 4: Triggered(10, 0.0, 1.0)})["triggered_theta_worst"]
    0.5
    """
    if not found:
        return {}
    users = [found[user] for user in sorted(found)]
    return {
        "triggered_rho": statistics.fmean(user.rho for user in users),
        "triggered_theta_mean": statistics.fmean(user.theta for user in users),
        "triggered_theta_worst": max(user.theta for user in users),
    }
