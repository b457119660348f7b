"""Rows no longer than a limit, and then another rule: static, and by the rows themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_flower.aggregation.following import rule_then
from pfl_flower.aggregation.units import in_units
from pfl_flower.objective.vectors import length


@in_units("radius")
def clipped(
    rows: Tensor, *, radius: float | None = None, then: str = "sum", tolerance: int = 1
) -> Tensor:
    """Return what another rule makes of the rows, those longer than ``radius`` shortened to it.

    ``clip(g) = g min(1, radius/||g||)`` (norm bounding: Sun, Kairouz, Suresh, McMahan, *Can you
    really backdoor federated learning?*, 2019). Then the sum, and one row moves it by ``radius`` at
    most, as under l2 by lam whatever the rule. Without a radius it is the rows' median length.

    >>> clipped(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), radius=1.0)
    tensor([0.6000, 1.8000])
    """
    norms = length(rows)
    reach = norms.median() if radius is None else rows.new_tensor(radius)
    return rule_then(then, shortened(rows, norms, reach), tolerance)


@in_units()
def adaptively_clipped(rows: Tensor, *, then: str = "trimmed-mean", tolerance: int = 1) -> Tensor:
    """Return what another rule makes of the rows, the longest shortened to the next one's length.

    Adaptive robust clipping (Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, *Adaptive gradient
    clipping for robust federated learning*, 2025): ``floor(2 f (k - f) / k)`` rows are clipped to
    the length of the longest that is not. ``tolerance`` is f, with ``2 f < k``.

    >>> adaptively_clipped(torch.tensor([[1.0], [2.0], [9.0], [3.0]]), then="sum", tolerance=1)
    tensor([9.])
    """
    f = min(tolerance, (len(rows) - 1) // 2)
    norms = length(rows)
    number = 2 * f * (len(rows) - f) // len(rows)
    reach = norms[:, 0].sort().values[len(rows) - number - 1]
    return rule_then(then, shortened(rows, norms, reach), tolerance)


def shortened(rows: Tensor, norms: Tensor, reach: Tensor) -> Tensor:
    """Return rows ``(k, d)`` of lengths ``(k, 1)``, those longer than ``reach`` cut to it."""
    tiny = torch.finfo(rows.dtype).tiny
    return torch.where(norms > reach, rows * (reach / norms.clamp(min=tiny)), rows)
