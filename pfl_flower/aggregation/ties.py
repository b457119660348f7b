"""Means of the best rows, in which rows that tie for the last place share it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from pfl_flower.aggregation.kernels import by_columns, mean_of


def mean_of_least(rows: Tensor, keys: Tensor, kept: int) -> Tensor:
    """Return the mean of the ``kept`` rows with the least keys ``(k,)``.

    Where t rows have the last key and there are s places for them, each counts for s/t: the mean of
    what the choices of s of them give. To the bit a function of the set of rows.
    """
    order = by_key(rows, keys)
    last = keys[order[kept - 1]]
    below, upto = int((keys < last).sum()), int((keys <= last).sum())
    tied = order[below:upto]
    # Equal rows are one row, whichever is taken: strategic users often send the same.
    if upto == kept or bool((rows[tied] == rows[tied[0]]).all()):
        return mean_of(rows, order[:kept])
    share, sure = (kept - below) / kept, order[:below]
    certain = by_columns(rows, lambda part: (part[sure] / kept).sum(dim=0))
    return certain + share * mean_of(rows, tied)


def means_of_nearest(rows: Tensor, away: Tensor, kept: int) -> Tensor:
    """Return for each row the mean ``(k, d)`` of the ``kept`` nearest, by distances ``(k, k)``.

    To the bit what ``mean_of_least`` gives row by row, which is asked where rows that are not the
    same are equally far away.
    """
    near, order = away.sort(dim=1, stable=True)
    # Rows at distance 0 are one row, whichever is taken.
    ties = (near[:, 1:] == near[:, :-1]) & (away[order[:, 1:], order[:, :-1]] > 0)
    means = [
        mean_of_least(rows, away[row], kept) if tied else mean_of(rows, order[row, :kept])
        for row, tied in enumerate(ties.any(dim=1).tolist())
    ]
    return torch.stack(means)


def by_key(rows: Tensor, keys: Tensor) -> Tensor:
    """Return the rows' positions by key, and by their entries where keys are equal."""
    order = keys.argsort(stable=True)
    tie = keys[order[1:]] == keys[order[:-1]]
    if bool(tie.any()):
        # A group of ties begins where there is none with the one before.
        starts = [0, *((~tie).nonzero().flatten() + 1).tolist(), len(order)]
        for start, end in pairwise(starts):
            if end - start > 1:
                entries = rows[order[start:end]]
                if bool((entries != entries[0]).any()):
                    ranks = sorted(range(end - start), key=entries.tolist().__getitem__)
                    order[start:end] = order[start:end][ranks]
    return order


def rounded(keys: Tensor) -> Tensor:
    """Return keys ``(k,)``, those equal that differ by rounding alone, as the least of them.

    Keys that come out of an iteration, or of sums in the order of the rows, tie up to rounding. A
    gap of ``sqrt(eps)`` of the largest divides them.

    >>> rounded(torch.tensor([1.0, 3.0, 1.0000001, 2.0]))
    tensor([1., 3., 1., 2.])
    """
    ordered, order = keys.sort(stable=True)
    gap = torch.finfo(keys.dtype).eps ** 0.5 * ordered[-1].abs()
    new = torch.ones_like(order, dtype=torch.bool)
    new[1:] = ordered[1:] - ordered[:-1] > gap
    first = ordered[new][new.cumsum(0) - 1]
    return torch.empty_like(keys).scatter_(0, order, first)
