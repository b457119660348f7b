"""Aggregation rules that withstand strategic users, in place of the paper's sum.

A rule maps the k accepted rows ``(k, d)``, ordered by user, to the direction ``(d,)`` of descent.
Robust rules estimate the gradient of one user; here each is multiplied by k, so that it takes the
sum's place at the sum's step size: on equal rows every rule is the sum.

Where fewer rows were accepted than a tolerance f needs, f is lowered to the most that they allow. A
finite row of any size, among enough others, never makes a direction that is not finite.

Rows are a set: who sent one plays no part. Coordinates and distances do not name users, and rows
that tie for the last place among the best share it, see ``mean_of_least``. What the order of the
rows still decides is the order of sums, a unit or two in the last place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pfl_flower.aggregation.kernels import (
    distances,
    in_order,
    mean,
    medians,
    middle_of,
    of_columns,
    trimmed,
)
from pfl_flower.aggregation.rounds import is_told_f, sees_rounds
from pfl_flower.aggregation.ties import mean_of_least, means_of_nearest
from pfl_flower.aggregation.units import in_units
from pfl_flower.objective.vectors import length
from pfl_flower.support.errors import ConfigError

Rule = Callable[..., Tensor]

SMOOTHING = 1e-4
"""Radius within which the geometric median is rounded off, relative to the rows' spread.

Of k rows it adds at most ``k radius / 2`` to the sum of distances. Where the median is a row, the
steps grow with its logarithm: 53 at 1e-3, 107 at 1e-4, 349 at 1e-8.
"""
STEPS = 1000
"""Most steps of Weiszfeld's iteration, ten times what the slowest of the tests' rows takes."""
CLIPPINGS = 3
"""Steps of centred clipping: of 11 rows, 3 of them far out, it is then within 1% of its limit."""


def median(rows: Tensor) -> Tensor:
    """Return k times the coordinate-wise median.

    Of an even number of rows it is the mean of the two in the middle (Yin, Chen, Ramchandran,
    Bartlett, *Byzantine-robust distributed learning: towards optimal statistical rates*, 2018).

    >>> median(torch.tensor([[1.0, 0.0], [2.0, 1.0], [900.0, -900.0]]))
    tensor([6., 0.])
    """
    return of_columns(rows, lambda ordered: len(rows) * middle_of(ordered))


def trimmed_mean(rows: Tensor, *, tolerance: int = 1) -> Tensor:
    """Return k times the coordinate-wise mean without the f largest and the f smallest values.

    (Yin, Chen, Ramchandran, Bartlett, *Byzantine-robust distributed learning*, 2018.) ``tolerance``
    is f, with ``2 f < k``.

    >>> trimmed_mean(torch.tensor([[1.0], [2.0], [3.0], [900.0]]), tolerance=1)
    tensor([10.])
    """
    f = min(tolerance, (len(rows) - 1) // 2)
    return of_columns(rows, lambda ordered: len(rows) * trimmed(ordered, f))


@in_units()
def geometric_median(rows: Tensor, *, smoothing: float = SMOOTHING, steps: int = STEPS) -> Tensor:
    """Return k times the smoothed geometric median ``argmin_z sum_n h(||g_n - z||)``.

    ``h(r) = r`` beyond a small radius and the parabola that continues it within. Weiszfeld's
    iteration ``z <- sum w_n g_n / sum w_n, w_n = 1/max(radius, ||g_n - z||)`` (Pillutla, Kakade,
    Harchaoui, *Robust aggregation for federated learning*, 2022) runs from the coordinate-wise
    median until it rests. The radius is ``smoothing`` times the median distance to that start,
    and there are ``steps`` steps at most.

    >>> geometric_median(torch.tensor([[0.0], [1.0], [900.0]], dtype=torch.float64)).round()
    tensor([3.], dtype=torch.float64)
    """
    centre = medians(rows)
    # The median distance, which no minority can move far, makes the rule blind to units.
    spread = length(rows - centre).median()
    if spread <= _tiny(rows) / smoothing:
        return len(rows) * centre
    # A mean of rows is off by a few units of rounding: shorter steps are noise.
    rest = 4 * torch.finfo(rows.dtype).eps * spread
    for _ in range(steps):
        # Weights are at most 1/smoothing and at least 0, of rows of any size.
        weights = spread / length(rows - centre).clamp(min=smoothing * spread)
        moved = ((weights / weights.sum()) * rows).sum(dim=0)
        step, centre = length(moved - centre), moved
        if step <= rest:
            break
    return len(rows) * centre


@in_units()
def krum(rows: Tensor, *, tolerance: int = 1) -> Tensor:
    """Return k times the row with the lowest score; of several such, their mean.

    The score of a row is the sum of its squared distances to the k - f - 2 nearest others
    (Blanchard, El Mhamdi, Guerraoui, Stainer, *Machine learning with adversaries*, 2017).
    ``tolerance`` is f, with ``2 f + 2 < k``.

    Blanchard et al. leave a tie to the smallest user id, which a strategic user may hold. Krum's
    guarantee is a ball around the honest mean that holds every row of the lowest score, and then
    their mean too; that depends on nobody's id, and moves, scales and turns as the rows do.

    >>> krum(torch.tensor([[1.0], [2.0], [3.0], [900.0], [2.5]]), tolerance=1)
    tensor([12.5000])
    >>> krum(torch.tensor([[900.0], [0.0], [0.0], [0.0], [0.0], [0.0], [4.0]]), tolerance=1)
    tensor([0.])
    """
    return len(rows) * mean_of_least(rows, _scores(rows, tolerance), 1)


@in_units()
def multi_krum(rows: Tensor, *, tolerance: int = 1, selected: int = 0) -> Tensor:
    """Return k times the mean of the rows with the lowest scores of Krum.

    (Blanchard, El Mhamdi, Guerraoui, Stainer, 2017.) ``selected`` rows are kept, k - f where it is
    0; where more have the last score than there are places, their mean takes these.

    >>> multi_krum(torch.tensor([[1.0], [2.0], [3.0], [900.0], [2.0]]), tolerance=1)
    tensor([10.])
    """
    kept = min(selected or len(rows) - _krum_tolerance(rows, tolerance), len(rows))
    return len(rows) * mean_of_least(rows, _scores(rows, tolerance), kept)


@in_units("radius")
def centred_clipping(
    rows: Tensor, *, radius: float | None = None, clippings: int = CLIPPINGS
) -> Tensor:
    """Return k times the centre after ``clippings`` steps ``v <- v + mean clip(g_n - v)``.

    ``clip(z) = z min(1, radius/||z||)`` (Karimireddy, He, Jaggi, *Learning from history for
    Byzantine robust optimization*, 2021). Theirs starts from the last round's aggregate of momenta;
    a rule here has no memory and starts from the coordinate-wise median. Without a radius it is the
    median distance of the rows to that start; with 0 the rows stay there.

    >>> centred_clipping(torch.tensor([[0.0], [2.0], [4.0]]), radius=10.0)
    tensor([6.])
    """
    centre = medians(rows)
    reach = length(rows - centre).median() if radius is None else rows.new_tensor(radius)
    for _ in range(clippings):
        away = rows - centre
        norms = length(away)
        factor = torch.where(norms > reach, reach / norms.clamp(min=_tiny(rows)), 1.0)
        centre = centre + mean(factor * away)
    return len(rows) * centre


@in_units()
def mixed(rows: Tensor, *, tolerance: int = 1) -> Tensor:
    """Return the rows ``(k, d)``, each replaced by the mean of the k - f nearest to it.

    Itself included: nearest-neighbour mixing, which makes the rule that follows it as good as any
    can be among users who differ (Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, *Fixing
    by mixing*, 2023). ``tolerance`` is f, with ``2 f < k``. Of neighbours equally far away for whom
    there is no place, the mean takes it.

    >>> mixed(torch.tensor([[1.0], [3.0], [900.0]]), tolerance=1)
    tensor([[  2.0000],
            [  2.0000],
            [451.5000]])
    """
    kept = len(rows) - min(tolerance, (len(rows) - 1) // 2)
    means = means_of_nearest(rows, distances(rows), kept)
    # A mean lies among its rows: rounded beyond the largest number it would be infinite.
    return means.clamp(rows.amin(dim=0), rows.amax(dim=0))


def bind(
    rule: Rule, *, tolerance: int, mixing: bool = False, **parameters: float
) -> Callable[[Tensor], Tensor]:
    """Return a rule of the rows alone.

    Parameters
    ----------
    rule : callable
        One of these rules or one of your own; it is told f if it has a parameter ``tolerance``.
    tolerance : int
        f.
    mixing : bool
        Whether the rule sees the rows mixed.
    **parameters
        Others of the rule's parameters.

    Raises
    ------
    ConfigError
        If the rule is a class that sees rounds.
    """
    if sees_rounds(rule):
        raise ConfigError(
            f"aggregation = {rule.__name__}: expected a rule of rows alone, where there are no "
            "rounds of a run"
        )
    if is_told_f(rule):
        parameters["tolerance"] = tolerance
    bound = partial(rule, **parameters)
    return (lambda rows: bound(mixed(rows, tolerance=tolerance))) if mixing else bound


def _tiny(rows: Tensor) -> float:
    return torch.finfo(rows.dtype).tiny


def _krum_tolerance(rows: Tensor, tolerance: int) -> int:
    return max(0, min(tolerance, (len(rows) - 3) // 2))


def _scores(rows: Tensor, tolerance: int) -> Tensor:
    """Return the roots of Krum's scores, ``(k,)``, which put rows in the same order.

    They are lengths, of rows of any size and without a scale to divide by: the median distance, say
    is 0 where half of the rows are one row.
    """
    # The nearest is the row itself, at distance 0; of a row alone there is nothing else.
    near = max(1, len(rows) - _krum_tolerance(rows, tolerance) - 2)
    others = in_order(distances(rows))[min(1, len(rows) - 1) :].mT
    # In memory one after another: each row's are summed in one order, and equal ones tie.
    return length(others[:, :near].contiguous())[:, 0]
