"""The least number of labels that exact poisoning of a linear classifier takes (no paper's)."""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from scipy.special import lambertw
from torch import Tensor

from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData
from pfl_flower.attacks.poisoning.recipe import Recipe
from pfl_flower.objective.losses import Logistic, Softmax

NOTHING = 1e-14
"""Share of the sum of absolute terms below which ``<D, theta_spade>`` is their rounding: d of them
are off by about eps sqrt(d)."""


def label_bound(classes: int) -> float:
    r"""Return ``W((C-1)/e)``, the most that one label adds to ``sum_x w_x <y - p, s>``.

    W is Lambert's function. For scores s, ``p = softmax(s)`` and label a, with ``u_b = s_a - s_b``
    and any M,

        <e_a - p, s> = sum_b p_b u_b <= M   iff   sum_{b != a} (u_b - M) e^{-u_b} <= M.

    Each term is at most ``e^{-1-M}``, at ``u_b = 1 + M``. So the least such M has
    ``(C - 1) e^{-1-M} = M``, which is ``M e^M = (C-1)/e``, and it is attained where all the other
    labels tie at margin 1 + M. Soft labels, mixtures of hard ones, obey the same bound. For C = 2
    it is ``max_t t sigma(-t) = 0.2785``, at ``t* = 1.2785``.

    >>> round(label_bound(2), 4), round(label_bound(10), 4)
    (0.2785, 1.101)

    Raises
    ------
    ValueError
        If there are fewer than two classes.
    """
    if classes < 2:
        raise ValueError(f"classes = {classes}: expected at least 2")
    return float(lambertw((classes - 1) / math.e).real)


def least_weight(aim: Aim) -> float:
    """Return a lower bound on the total label weight of any data that meet the aim exactly.

    The aim is ``sum_x w_x (y - p) Q^T = D``, D the demand ``2 nu theta_spade - g``. Its inner
    product with theta_spade is ``sum_x w_x <y - p, s> = <D, theta_spade>``, and no label adds more
    than ``label_bound`` to the left side:

        sum_x w_x >= <2 nu theta_spade - g, theta_spade> / W((C-1)/e).

    For squared l2, ``<D, theta_spade> = 2 lam <theta_spade - target, theta_spade> + 2 nu
    ||theta_spade||^2``. For C = 2 ``repeated`` attains the bound. For C >= 3 every label would have
    to sit where all others tie at the best margin, which asks ``C(C-1)/2`` equations of C label
    weights: the bound then holds but is, in general, not attained (see ``matching``).

    Raises
    ------
    ValueError
        If the model is not a linear classifier.
    """
    if not isinstance(aim.loss, Softmax | Logistic):
        raise ValueError("loss: the bound is about labels of a classifier")
    classes = 2 if isinstance(aim.loss, Logistic) else aim.model.outputs
    return max(0.0, float((aim.demand * aim.theta).sum())) / label_bound(classes)


def repeated(aim: Aim, *, integer: bool = False) -> PoisonedData:
    """Return the cheapest exact poisoning of binary logistic regression: one query, repeated.

    With the demand ``D = 2 nu theta_spade - g``, which for squared l2 is ``2 v``, ``v = lam
    (theta_spade - target) + nu theta_spade``,

        Q = t* v / <v, theta_spade>,   A = 1,   weight = 2 <v, theta_spade> / (t* sigma(-t*)),

    t* = 1.2785 = argmax t sigma(-t). Proof. A point of margin ``t = A theta_spade^T Q`` adds
    ``w A sigma(-t) Q`` to what must sum to D, so ``sum_x w_x t_x sigma(-t_x) = <D, theta_spade>``
    and, as ``t sigma(-t) <= t* sigma(-t*) = t* - 1``, the weights sum to at least ``<D,
    theta_spade>/(t* - 1)``. The point above has t = t*, hence this weight, and ``w sigma(-t*) Q =
    D``. If ``<D, theta_spade> <= 0`` no positive weight is the least (t -> -inf): the data then
    are one label.

    With a constant feature, ``sum_x w_x A_x sigma(-t_x) = b``, b the last entry of D, must hold
    too. If ``|b| t* < <D, theta_spade>`` two queries with opposite labels, both at margin t*,
    attain the same bound. Otherwise one query ``D/b`` with ``t_0 = <D, theta_spade>/|b| <= t*``
    costs ``|b| (1 + e^{t_0})``, and this is least: with ``alpha = e^{t_0}`` and ``beta = 1 +
    e^{t_0} - t_0 e^{t_0} >= 0``, ``sigma(-t) (alpha t + beta) <= 1`` for every t, equal at t_0;
    its sum over the points is ``alpha <D, theta_spade> + beta |b| = |b| (1 + e^{t_0})`` at most.

    Parameters
    ----------
    aim : Aim
        Logistic loss.
    integer : bool
        Round the weight up to an integer and move the query to the margin t that keeps the aim
        exact, ``t sigma(-t) = <D, theta_spade>/weight``. Only without a constant feature.

    Raises
    ------
    ValueError
        If the loss is not logistic, or ``integer`` is asked with a constant feature.
    """
    if not isinstance(aim.loss, Logistic):
        raise ValueError("loss: a repeated query holds a model of logistic regression only")
    if aim.bias:
        if integer:
            raise ValueError("integer: not with a constant feature, round or use matching")
        return _with_bias(aim)
    demand, theta = aim.demand[0], aim.attack_model
    product = _product(demand, theta)
    weight = product / label_bound(2) if product > 0 else 1.0
    weight = float(math.ceil(weight)) if integer else weight
    margin = _margin(product / weight)
    query = demand / (weight * _sigmoid(-margin))
    return _measure(aim, query[None], [1], [weight])


def _with_bias(aim: Aim) -> PoisonedData:
    demand, theta = aim.demand[0], aim.attack_model
    bound = label_bound(2)
    best = 1 + bound
    product, last = _product(demand, theta), float(demand[-1])
    slopes, bias = theta[:-1], float(theta[-1])
    if last != 0 and (abs(last) * best >= product or not bool(slopes.any())):
        weight = abs(last) * (1 + math.exp(product / abs(last)))
        return _measure(aim, demand[None] / last, [1 if last > 0 else -1], [weight])
    if not bool(slopes.any()):
        raise ValueError("attack_model: without slopes no query has the margin that is needed")
    # Weights a, b of labels 1 and -1 at margin t: (a + b) t sigma(-t) = <D, theta> and
    # (a - b) sigma(-t) = last; the query with the lighter label is the shortest one.
    weight = product / bound if product > 0 else 1.0
    margin = _margin(product / weight)
    rate = _sigmoid(-margin)
    heavy = (weight + abs(last) / rate) / 2
    light = weight - heavy
    sign = 1.0 if last >= 0 else -1.0
    minor = slopes * (-sign * margin - bias) / (slopes @ slopes)
    major = (sign * demand[:-1] / rate + light * minor) / heavy
    queries = torch.cat([torch.stack([major, minor]), demand.new_ones((2, 1))], dim=1)
    return _measure(aim, queries, [int(sign), -int(sign)], [heavy, light])


def _measure(aim: Aim, queries: Tensor, labels: list[int], weights: list[float]) -> PoisonedData:
    return PoisonedData.measure(
        aim,
        "repeated",
        queries,
        torch.tensor(labels, device=queries.device),
        queries.new_tensor(weights),
    )


def _product(demand: Tensor, theta: Tensor) -> float:
    """Return ``<D, theta_spade>``, 0 where it is rounding error: its weight would be too."""
    product = float(demand @ theta)
    return product if abs(product) > NOTHING * float(demand.abs() @ theta.abs()) else 0.0


def _sigmoid(value: float) -> float:
    return float(torch.sigmoid(torch.tensor(value, dtype=torch.float64)))


def _margin(share: float) -> float:
    """Return the ``t <= t*`` with ``t sigma(-t) = share``, where the left side increases."""
    best = 1 + label_bound(2)
    if share >= label_bound(2):
        return best
    # Below 0 sigma(-t) is at least 1/2: at t = 4 share the left side is at most 2 share. From share
    # = 0 up, -1 is below any.
    low = min(-1.0, 4 * share)
    return float(brentq(lambda t: t * _sigmoid(-t) - share, low, best, xtol=1e-15, rtol=1e-15))


def by_repetition(aim: Aim, recipe: Recipe) -> PoisonedData:
    """Return the query, which leaves a run nothing to choose."""
    return repeated(aim)
