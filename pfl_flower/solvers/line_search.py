"""How far to go along a Newton step: one rule, for one problem or for many at once.

A step p promises descent at the rate ``slope = <grad f(x), p>``. The scales ``s = 1, 1/2, 1/4, ..``
are tried; with ``e = ROUNDINGS eps |f(x)|`` for the rounding of a value, s is taken if

    s slope > e              and    f(x - s p) <= f(x) - ARMIJO s slope               (values), or
    slope <= e POINTS        and    ||grad f(x - s p)|| <= (1 - s/2) ||grad f(x)||    (gradients).

Values judge as long as they can tell. At the end they differ by less than their rounding, and the
gradient of a convex function is the better judge, which it is not far out: among points of smaller
gradients and higher values an iteration can go around in circles.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ARMIJO = 1e-4
"""Least share of the promised descent (Nocedal and Wright, *Numerical optimization*, 2006, ch. 3).

It is there to refuse steps that overshoot, not to choose among good ones: near a minimum a Newton
step brings 1/2 of what it promises; along the kinks of l2's envelopes as little as 4e-4 was seen.
"""
ROUNDINGS = 4
"""Units ``eps |f|`` by which a value may be off: its last sums, of loss, nu and regulariser."""
POINTS = 10**6
"""Most points of a user: a sum over n of them is off by up to ``n eps |f|``, whatever its order."""
HALVINGS = 60
"""Most halvings, for a value of 0, which never rounds; the shortest step seen has 35 of them."""
SHORTEST_BY_GRADIENT = 2.0**-4
"""Shortest scale judged by gradients: a shorter one asks for less than the rounding they carry."""
LONGEST = 10.0
"""Longest step in units of 1 + the distance to what pulls back, see ``shortened``."""


def line_search(
    value_at: Callable[[float], Tensor],
    value: Tensor,
    slope: Tensor,
    *,
    norm_at: Callable[[float], Tensor] | None = None,
    norm: Tensor | None = None,
    further: bool = False,
) -> Tensor:
    """Return the scales ``(...)`` of descent steps, 0 where none is good.

    All scales are powers of 1/2, so that ``x - s p`` is the very point that was judged.

    Parameters
    ----------
    value_at : callable
        From s to the values ``f(x - s p)``, ``(...)``: one for each problem, all at the same s.
    value, slope : Tensor
        ``f(x)`` and ``<grad f(x), p>``, ``(...)``.
    norm_at, norm : callable and Tensor, optional
        From s to ``||grad f(x - s p)||``, ``(...)``, and the norms at x. Without them values alone
        judge.
    further : bool
        Whether to go on halving while that lowers the value further. Where f is flat a Newton step
        is too long by orders of magnitude and the first scale that is good is a poor one; it pays
        where a value costs much less than a step.
    """
    rounding = ROUNDINGS * torch.finfo(value.dtype).eps * value.abs()
    close = slope <= POINTS * rounding
    best, lowest, scale = torch.zeros_like(value), value, 1.0
    waiting = torch.ones_like(value, dtype=torch.bool)
    for _ in range(HALVINGS):
        telling = scale * slope > rounding
        judged = close & (norm_at is not None and scale >= SHORTEST_BY_GRADIENT)
        # Shorter scales tell even less: who is left has no good one.
        if not bool((waiting & (telling | judged)).any()):
            break
        reached = value_at(scale)
        # What was promised can be less than a value's last digit: an equal value is no progress.
        better = waiting & telling & (reached <= value - ARMIJO * scale * slope)
        better &= reached < lowest
        best, lowest = torch.where(better, scale, best), torch.where(better, reached, lowest)
        # Convex along the step: values that no longer fall will not fall again.
        undecided = waiting & (best == 0)
        if norm_at is not None and norm is not None and bool((undecided & judged).any()):
            # A Newton step of this length leaves 1 - s of a gradient; half of that is asked for.
            calmer = undecided & judged & (norm_at(scale) <= (1 - 0.5 * scale) * norm)
            best = torch.where(calmer, scale, best)
        waiting = waiting & (best == 0) | better & further
        scale /= 2
    return best


def shortened(step: Tensor, reach: Tensor) -> Tensor:
    """Return steps ``(..., d)`` at most ``LONGEST (1 + reach)`` long, for reaches ``(...)``.

    Reach is the distance from rho to theta: a solution is where the regulariser's pull back and the
    data's agree, and a Newton step that leads many times farther comes from a function without
    curvature there, not from a solution far off.
    """
    size = torch.linalg.vector_norm(step, dim=-1)
    return step * (LONGEST * (1 + reach) / size).clamp(max=1)[..., None]
