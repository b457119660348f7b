"""How far k users can hold rho from anywhere, for rules that sum what single users add.

Under some rules the direction is 0 exactly where ``sum_n T(g_n) = 0``, with ``T(g)`` along g and no
longer than a cap C that no user can exceed:

* ``sum`` under a GRAD of finite radius: ``T(g) = g``, C the radius, lam of l2 and smooth l2;
* ``static-clipping`` and then the sum: ``T(g) = clip(g)``, C its radius, or GRAD's if that is less;
* ``qrmed``: at ``D = 0`` its equation is ``influence sum_n unit(g_n) = 0``, C its influence.

Let user n have a ``mu_n``-strongly convex, ``M_n``-smooth loss with minimiser ``theta_n*``. Its
report ``g_n`` at rho is ``grad L_n(theta_n)`` and parallel to ``rho - theta_n`` for every radial R,
so that with ``D_n = ||rho - theta_n*||``

    angle(g_n, rho - theta_n*) <= angle(g_n, theta_n - theta_n*) <= a_n,
    cos a_n = 2 sqrt(mu_n M_n) / (mu_n + M_n)                                   (Kantorovich),
    D_n <= ||rho - theta_n|| + ||theta_n - theta_n*|| <= phi'^-1(||g_n||) + ||g_n|| / mu_n.

The first ``<=`` holds as ``rho - theta_n*`` is ``theta_n - theta_n*`` and a vector along g_n, the
last gives a least length ``s_n(D_n)`` of g_n. At a distance r from a point p, with u the way there
and ``c_n = ||p - theta_n*|| < r``, the way from ``theta_n*`` is within ``arcsin(c_n / r)`` of u,
and ``D_n >= r - c_n``. So m honest users pull back along u by at least

    P(r) = sum_n T(s_n(r - c_n)) cos(a_n + arcsin(c_n / r)),

C in the place of T where the cosine is negative, and -C from a user with ``c_n >= r``. k users push
by at most ``k C``: where ``P(r) > k C`` rho does not rest, and small steps lead back. P rises in
r, and the largest r with ``P(r) <= k C`` is the bound. There is none if even ``C sum_n cos a_n <=
k C``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.aggregation.influence import Bound
from pfl_flower.objective.radial import Regularizer

HALVINGS = 60
"""Of an interval of numbers in double: nothing is left of it."""
FARTHEST = 1e9
"""In units of the farthest minimiser: what is not held there is held nowhere."""
UNKNOWN = Bound(math.inf, "no bound is known")


@dataclass(frozen=True, kw_only=True)
class Honest:
    """What the bound needs of the honest users, ``(m,)`` each.

    Attributes
    ----------
    away : Tensor
        ``c_n``, distances of their losses' minimisers from the point p.
    least, most : Tensor
        ``mu_n`` and ``M_n``, bounds on the curvature of their losses.
    """

    away: Tensor
    least: Tensor
    most: Tensor


def at_rest(
    aggregation: str,
    *,
    honest: Honest,
    regularizer: Regularizer,
    strategic: int,
    limit: float | None = None,
) -> Bound:
    """Return the bound on how far from p ``strategic`` users can make rho rest.

    Parameters
    ----------
    aggregation : str
        A name of the table.
    honest : Honest
        The others.
    regularizer : Regularizer
        R, convex.
    strategic : int
        k.
    limit : float, optional
        ``influence`` of qrmed, or the radius of static-clipping before the sum.

    Examples
    --------
    >>> from pfl_flower.objective.regularizers import L2, SquaredL2
    >>> ten = torch.ones(10, dtype=torch.float64)
    >>> honest = Honest(away=ten, least=ten, most=ten)
    >>> round(at_rest("sum", honest=honest, regularizer=L2(lam=0.1), strategic=2).most, 4)
    1.0602
    >>> at_rest("sum", honest=honest, regularizer=SquaredL2(lam=0.1), strategic=2).most
    inf
    """
    cap = {
        "sum": regularizer.radius,
        "static-clipping": math.inf if limit is None else min(limit, regularizer.radius),
        "qrmed": math.inf if limit is None else limit,
    }.get(aggregation, math.inf)
    if math.isinf(cap):
        return UNKNOWN
    cosines = 2 * (honest.least * honest.most).sqrt() / (honest.least + honest.most)
    angles = torch.arccos(cosines.clamp(max=1.0))

    def pull(r: float) -> float:
        apart = r - honest.away
        tilt = torch.cos(angles + torch.arcsin((honest.away / r).clamp(max=1.0)))
        sent = torch.full_like(apart, cap)
        if aggregation != "qrmed":
            sent = least_report(regularizer, apart.clamp(min=0.0), honest.least).clamp(max=cap)
        back = torch.where(tilt < 0, cap, sent) * tilt
        return float(torch.where(apart > 0, back, -cap).sum())

    unit = max(float(honest.away.max()), strategic * cap / float(honest.least.min()))
    low, high = 0.0, FARTHEST * unit
    if pull(high) <= strategic * cap:
        return Bound(math.inf, "the honest reports' directions may differ too much")
    for _ in range(2 * HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if pull(middle) <= strategic * cap else (low, middle)
    return Bound(high, "beyond it honest users pull back by more than k times the cap")


def least_report(regularizer: Regularizer, apart: Tensor, least: Tensor) -> Tensor:
    """Return ``s_n(D)``, the least length of a report at distances ``apart (m,)``.

    The root p of ``phi'^-1(p) + p/mu = D``; at a kink, where theta_n = rho, of ``p/mu = D``.
    """
    low = torch.zeros_like(apart)
    high = (least * apart).clamp(max=regularizer.radius)
    kink = regularizer.kink
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        inside = middle < kink if kink > 0 else torch.zeros_like(middle, dtype=torch.bool)
        stretched = torch.where(inside, 0.0, regularizer.inverse_slope(middle))
        short = stretched + middle / least <= apart
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return low
