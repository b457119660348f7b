"""Rules that choose whole rows first: Bulyan, and the mean of the rows of least diameter."""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_flower.aggregation.kernels import distances, mean, mean_of, middle_of, of_columns
from pfl_flower.aggregation.units import in_units
from pfl_flower.objective.vectors import length

SAME = 1 + 1e-10
"""Scores within this factor are equal: of d squares' rounding, and far below any other's gap."""
MOST_REMOVED = 12
"""Most f of the rows of least diameter: 2^f sets are looked at."""


@in_units()
def bulyan(rows: Tensor, *, tolerance: int = 1) -> Tensor:
    """Return k times the mean, in each coordinate, of what is nearest to the median of Krum's rows.

    (El Mhamdi, Guerraoui, Rouault, *The hidden vulnerability of distributed learning in Byzantium*,
    2018.) Krum is applied to what it has not taken yet until it has taken ``s = k - 2 f`` rows; of
    these the ``s - 2 f`` values nearest to their median are averaged in each coordinate.
    ``tolerance`` is f, with ``4 f + 2 < k``. Rows of equal score are taken together, and share the
    places if there are not enough: their mean takes these. Of values equally far from the median
    each counts for its share.

    >>> bulyan(torch.tensor([[1.0], [2.0], [3.0], [900.0], [2.0], [2.0], [2.0]]), tolerance=1)
    tensor([14.])
    """
    f = max(0, min(tolerance, (len(rows) - 3) // 4))
    taken = _taken(rows, f)
    return len(rows) * of_columns(taken, lambda ordered: _near_middle(ordered, len(taken) - 2 * f))


def _taken(rows: Tensor, f: int) -> Tensor:
    """Return the ``k - 2 f`` rows that Krum takes one after another."""
    ordered, order = distances(rows).sort(dim=1, stable=True)
    left = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    chosen: list[Tensor] = []
    first: Tensor | None = None
    places, count = len(rows) - 2 * f, len(rows)
    while places:
        # Of those that are left the nearest m - f - 2 others; the first is the row itself.
        near = left[order]
        there = near & (near.cumsum(dim=1) <= 1 + max(1, count - f - 2))
        scores = length((ordered * there).contiguous())[:, 0]
        first = scores.clone() if first is None else first
        scores[~left] = torch.inf
        # Scores, and rows, may be equal but for their rounding: of the least score's row as far
        # from its neighbours as it was at first, since the nearest of the last few may be its
        # equals, at a distance that is nothing but rounding. Rows far from all have no say in it.
        slack = (SAME - 1) * first[scores.argmin()]
        best = (scores <= scores.min() + slack).nonzero().flatten()
        if len(best) > 1 and length(rows[best] - rows[best[0]])[:, 0].max() <= slack:
            best = best[:1]
        if len(best) <= places:
            chosen.append(rows[best])
            places, count = places - len(best), count - len(best)
            left[best] = False
        else:
            chosen.append(mean(rows[best]).expand(places, -1))
            places = 0
    return torch.cat(chosen)


def _near_middle(ordered: Tensor, kept: int) -> Tensor:
    """Return the mean ``(c,)`` of the ``kept`` values nearest to each column's median."""
    middle = middle_of(ordered)
    moves = ordered - middle
    away = moves.abs()
    last = away.sort(dim=0).values[kept - 1]
    # Values of mixed rows that are the same but for their rounding are as far from the median.
    slack = (SAME - 1) * ordered.abs().amax(dim=0)
    below, tied = away < last - slack, (away - last).abs() <= slack
    weights = below + tied * ((kept - below.sum(dim=0)) / tied.sum(dim=0)).to(ordered.dtype)
    return middle + (moves * (weights / kept)).sum(dim=0)


@in_units()
def least_diameter(rows: Tensor, *, tolerance: int = 1) -> Tensor:
    """Return k times the mean of those k - f rows whose farthest two are nearest to each other.

    Minimum-diameter averaging (Rousseeuw, 1985; El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault,
    *Genuinely distributed Byzantine machine learning*, 2020). ``tolerance`` is f, with ``2 f < k``
    and f at most ``MOST_REMOVED``. Where several sets of rows have the least diameter, which is
    usual (of the two ends of the longest distance either may go), their means are averaged: that
    depends on nobody's id. Rows that may stay beside k - f others at no cost all count.

    Of the two ends of the longest distance that is left one must go: ``2^f`` ways, not all subsets.

    >>> least_diameter(torch.tensor([[1.0], [2.0], [3.0], [900.0]]), tolerance=1)
    tensor([8.])
    """
    f = min(tolerance, (len(rows) - 1) // 2, MOST_REMOVED)
    away = distances(rows)
    pairs = sorted(
        ((float(away[i, j]), i, j) for i in range(len(rows)) for j in range(i)), reverse=True
    )
    best = min(_covers(pairs, f, -1.0), key=lambda gone: _diameter(pairs, gone))
    # What rounding takes from distances of rows so long makes no difference between sets.
    size = length(rows[[i for i in range(len(rows)) if i not in best]]).max()
    least = SAME * _diameter(pairs, best) + 64 * torch.finfo(rows.dtype).eps * float(size)
    found = {gone for gone in _covers(pairs, f, least) if _diameter(pairs, gone) <= least}
    # One that removes more than another does is no choice of its own.
    fewest = [gone for gone in found if not any(other < gone for other in found)]
    sets = [[i for i in range(len(rows)) if i not in gone] for gone in sorted(map(sorted, fewest))]
    return len(rows) * mean(torch.stack([mean_of(rows, torch.tensor(kept)) for kept in sets]))


Pairs = list[tuple[float, int, int]]


def _covers(pairs: Pairs, most: int, above: float) -> set[frozenset[int]]:
    """Return sets of up to ``most`` rows that hold an end of every distance ``above``.

    Of sets as large as may be: those that hold an end of as many of the longest as they can.
    """
    waiting, found = [(frozenset[int](), 0)], set()
    seen: set[tuple[frozenset[int], int]] = set()
    while waiting:
        gone, start = waiting.pop()
        at = start
        while at < len(pairs) and (pairs[at][1] in gone or pairs[at][2] in gone):
            at += 1
        if len(gone) == most or at == len(pairs) or pairs[at][0] <= above:
            found.add(gone)
            continue
        for end in pairs[at][1:]:
            step = gone | {end}, at
            if step not in seen:
                seen.add(step)
                waiting.append(step)
    return found


def _diameter(pairs: Pairs, gone: frozenset[int]) -> float:
    for distance, one, other in pairs:
        if one not in gone and other not in gone:
            return distance
    return 0.0
