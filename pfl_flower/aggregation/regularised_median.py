"""The quadratically regularised median: what one user does to it is bounded by its weight."""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_flower.aggregation.clipping import shortened
from pfl_flower.aggregation.units import in_units
from pfl_flower.objective.vectors import length

STEPS = 1000
"""Most steps of Weiszfeld's iteration."""


@in_units("influence")
def regularised_median(
    rows: Tensor, *, influence: float | None = None, steps: int = STEPS
) -> Tensor:
    """Return ``k argmin_z k ||z||^2 / (2 influence) + sum_n ||g_n - z||``.

    Allouah, Guerraoui, Hoang, Villemaud, *Robust sparse voting*, 2024: their QrMed with equal
    weights and resilience ``influence``, of vectors. The direction ``D = k z`` solves

        D = influence sum_n unit(g_n - D/k),

    so it is a sum of what single users add, each no longer than ``influence``: the sum that the
    server makes under the l2 regulariser, with lam = influence and the report
    ``lam unit(rho - theta_n)`` of a user who holds ``theta_n = -g_n`` at ``rho = -D/k``. As there,
    a user who sends something else moves D by ``2 influence`` at most, and one who adds nothing by
    ``influence``, whatever the others send. Under l2 it bounds a user once more; under squared l2
    it is the bound that GRAD does not give.

    It draws to 0: equal rows longer than ``influence`` are cut to it. Without ``influence`` that is
    the rows' median length, and no bound is known beforehand.

    >>> row = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    >>> regularised_median(row, influence=1.0).round(decimals=6)
    tensor([0.6000, 0.8000], dtype=torch.float64)
    """
    k = len(rows)
    limits, norms = torch.finfo(rows.dtype), length(rows)
    reach = float(norms.median()) if influence is None else influence
    # Of a row so far away the direction alone counts, and it is kept to the last digit.
    near = shortened(rows, norms, norms.new_tensor(reach / limits.eps))
    # Divided by it, so that what is added to a sum of unit vectors is of their size.
    scaled, z = near / max(reach, limits.tiny), torch.zeros_like(rows[0])
    # Steps are shorter than this by rounding alone: a mean of k rows no longer than 1 counts.
    rest = 4 * limits.eps
    for number in range(1, steps + 1):
        norms = length(scaled - z)
        # Where a row is the answer, steps toward it grow short: is it?
        if number & (number - 1) == 0 and _is_answer(scaled, nearest := scaled[norms.argmin()]):
            return k * reach * nearest
        weights = norms.clamp(min=rest).reciprocal()
        moved = (weights * scaled).sum(dim=0) / (k + weights.sum())
        step, z = length(moved - z), moved
        if step <= rest:
            break
    return k * reach * z


def _is_answer(rows: Tensor, z: Tensor) -> bool:
    """Return whether 0 is a subgradient of ``k ||z||^2 / 2 + sum ||g_n - z||`` at a row z."""
    norms = length(rows - z)
    there = norms == 0
    units = torch.where(there, 0.0, (rows - z) / norms.clamp(min=torch.finfo(rows.dtype).tiny))
    # Rounding of a sum of k unit vectors: at the very edge z is next to the row.
    slack = 8 * len(rows) * torch.finfo(rows.dtype).eps
    return bool(length(units.sum(dim=0) - len(rows) * z) <= int(there.sum()) + slack)
