"""What rules spend their time on: columns in order, means of rows, distances between rows.

A matrix of rows is gone through in blocks of columns, so that what is worked out besides is small,
and stays in the cache, whatever the number of rows and of columns. To the bit the answers are those
of ``torch.sort`` and ``torch.sum`` of whole matrices, of few trimmed rows those of ``numpy.mean``.
Only the distances are summed in another order than row by row, and differ by a unit or two in the
last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pdist

from pfl_flower.aggregation.units import unit_of
from pfl_flower.objective.vectors import length, middle

LANE = 64
"""Columns come in multiples of so many: torch sums those that fill its vectors, four at a time, in
one order, and what is left over in another."""
ENTRIES = 1 << 19
"""Of a block, 4 MiB in double precision: of 50 rows smaller ones cost a tenth more in calls, and of
a thousand larger ones half as much again in the cache."""

FEW = 64
"""Numbers that are added one after another, which numpy does four times faster than torch by
halves; of more the rounding would grow."""


def blocks(rows: Tensor) -> Iterator[slice]:
    """Yield the columns of ``(k, d)`` in blocks.

    >>> [part.stop - part.start for part in blocks(torch.zeros(800, 2000))]
    [576, 576, 576, 272]
    """
    lanes = ENTRIES // (LANE * max(1, len(rows)))
    # Odd: columns that are a power of two apart share few places of the cache.
    width = LANE * max(1, lanes - (lanes + 1) % 2)
    dim = rows.shape[1]
    # A column by itself would be summed as a vector, in another order: the last few stay together.
    starts = [start for start in range(0, dim, width) if start == 0 or dim - start >= LANE]
    for start, end in pairwise([*starts, dim]):
        yield slice(start, end)


def by_columns(rows: Tensor, answer: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``answer(rows[:, part]) -> (c,)`` of all blocks of columns, ``(d,)``."""
    parts = list(blocks(rows))
    if len(parts) == 1:
        return answer(rows)
    found = rows.new_empty(rows.shape[1])
    for part in parts:
        found[part] = answer(rows[:, part])
    return found


def in_order(rows: Tensor) -> Tensor:
    """Return each column of ``(k, d)`` in ascending order.

    numpy sorts short columns of floating-point numbers by vector instructions, torch one number at
    a time: on 50 rows in twelve to fifteen times the time. Rows that carry a gradient, which an
    attacker climbs, stay torch's.
    """
    if not _numpys(rows):
        return rows.sort(dim=0).values
    return torch.from_numpy(np.sort(rows.detach().numpy(), axis=0))


def _numpys(rows: Tensor) -> bool:
    """Whether numpy can do what torch does, and nobody asks for a derivative."""
    return rows.is_cpu and not rows.requires_grad and rows.dtype in (torch.float32, torch.float64)


def of_columns(rows: Tensor, answer: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``answer(ordered (k, c)) -> (c,)`` of all columns, each in ascending order, ``(d,)``.

    In units of their own where a block's numbers would overflow or vanish: what is first and last
    in order says how large they are, which saves a pass over all of them.
    """

    def in_units(part: Tensor) -> Tensor:
        ordered = in_order(part)
        largest = float(torch.maximum(-ordered[0], ordered[-1]).amax())
        one = unit_of(ordered, largest)
        return answer(ordered) if one == 1 else answer(ordered / one) * one

    return by_columns(rows, in_units)


def mean(rows: Tensor) -> Tensor:
    """Return the mean of the rows ``(k, d)``."""
    return by_columns(rows, _mean)


def mean_of(rows: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the rows at positions ``(m,)``."""
    return by_columns(rows, lambda part: _mean(part[chosen]))


def trimmed(ordered: Tensor, cut: int) -> Tensor:
    """Return the mean ``(c,)`` of columns in order without ``cut`` entries at each end.

    What is in ``ordered`` is written over: it is the block's own, and new memory costs a tenth.
    """
    kept = ordered[cut : len(ordered) - cut]
    if _numpys(kept) and len(kept) <= FEW:
        with np.errstate(over="ignore", invalid="ignore"):
            found = torch.from_numpy(np.add.reduce(kept.numpy(), axis=0) / len(kept))
        if bool(found.isfinite().all()):
            return found
    # Divided first: the sum of finite rows can be infinite.
    return kept.div_(len(kept)).sum(dim=0)


def middle_of(ordered: Tensor) -> Tensor:
    """Return the medians ``(c,)`` of columns in order: of an even number the middle two's mean."""
    # Halves first: the sum of two finite rows can be infinite.
    return ordered[(len(ordered) - 1) // 2] / 2 + ordered[len(ordered) // 2] / 2


def medians(rows: Tensor) -> Tensor:
    """Return each column's median, ``(d,)``."""
    return of_columns(rows, middle_of)


def _mean(rows: Tensor) -> Tensor:
    # Divided first: the sum of finite rows can be infinite.
    return (rows / len(rows)).sum(dim=0)


def distances(rows: Tensor) -> Tensor:
    """Return all distances ``(k, k)`` between the rows ``(k, d)``.

    From their differences: ``||a||^2 + ||b||^2 - 2 <a, b>`` takes a third of the time and cancels
    all digits of rows that are nearer to each other than ``sqrt(eps)`` times their length. Where
    squares leave the range of numbers, a power of two brings them back, so that rows times a power
    of two have the same digits.
    """
    if rows.device.type != "cpu" or len(rows) < 2:
        return torch.stack([length(rows - row)[:, 0] for row in rows])
    pairs = pdist(rows)
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    doubtful = _doubtful(pairs, rows)
    if len(doubtful):
        one = middle(rows)
        # A gradient needs what pdist gave as it was: what is written over is a copy.
        pairs = pairs.clone() if one == 1 else pdist(rows / one) * one
        doubtful = doubtful if one == 1 else _doubtful(pairs / one, rows)
        for pair in doubtful.tolist():
            pairs[pair] = _distance(rows[first[pair]] - rows[second[pair]])
    found = rows.new_zeros((len(rows), len(rows)))
    found[first, second] = pairs
    found[second, first] = pairs
    return found


def _doubtful(pairs: Tensor, rows: Tensor) -> Tensor:
    """Return the positions of distances whose squares overflowed, or lost digits, or are 0."""
    limits = torch.finfo(rows.dtype)
    # What underflows is at most ``d tiny`` of the sum, and so below its rounding beyond this.
    trusted = (rows.shape[1] * limits.tiny / limits.eps) ** 0.5
    return (~((pairs >= trusted) & pairs.isfinite())).nonzero().flatten()


def _distance(away: Tensor) -> Tensor:
    """Return the length of a difference ``(d,)`` of any size, its squares summed as pdist does."""
    largest = float(away.abs().amax())
    if largest == 0:
        return away.new_zeros(())
    # Of the least number the power of two is none to divide by: numpy's takes the exponent.
    exponent = math.frexp(largest)[1]
    scaled = torch.from_numpy(np.ldexp(away.numpy(), -exponent))
    near = pdist(torch.stack([scaled, torch.zeros_like(scaled)]))
    return torch.from_numpy(np.ldexp(near.numpy(), exponent))[0]
