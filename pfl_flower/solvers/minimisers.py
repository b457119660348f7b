"""Whether LOSS has one minimiser, many, or none; and which of many is nearest to where a run ended.

F, LOSS as a function of rho alone, is convex: its minimisers are a convex set. A direction in which
F has no curvature at one of them is followed until the gradient is no longer 0:

* l2 pulls with a constant force. Users on opposite sides of rho, as many as there are strategic
  ones or two honest users alone, leave a segment along which the forces cancel.
* With ``nu = 0`` a shift of all models that no point sees (the same for all classes of a softmax,
  or of what no user's points ever show) changes nothing: the set is an affine space. Gradient
  descent keeps that part of rho where it started.
* With ``nu = 0`` and classes that can be told apart without error F falls for ever. A search ends
  far out, where nothing is left of the gradient, and that is no minimiser.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from pfl_flower.solvers.equilibrium import TOLERANCE, Equilibrium, minimise
from pfl_flower.solvers.shared_loss import SharedLoss, SharedPoint, envelope_hessian

BLUR = 1e-3
"""How far a gradient of the solver's tolerance may leave a minimiser undetermined, relative to
1 + ||rho||: a direction in which it leaves more is looked at."""
EDGE = 1e-6
"""Relative distance to the boundary of the ball of a kink within which a user may leave it."""
SLACK = 10.0
"""Gradients of up to so many tolerances count as 0 while a flat direction is followed."""
FAR = 100.0
"""Relative to 1 + ||rho||: what is flat as far as that is flat without end."""
HALVINGS = 20
"""Of the last doubling of a segment: its ends are found to 1e-6 of its length."""
UNSEEN = 1e-9
"""Curvature of the losses, relative to the largest, in directions that no point sees."""
STRIDES = (1e-2, 1e-1, 1e-3)
"""Lengths of steps along a segment, relative to 1 + ||rho||; one of them does not leave it."""
PULLS = (1e-1, 1e-3, 1e-5, 1e-7)
"""Weights of such a pull, relative to that of a user under l2, the last near the tolerance."""
FEW = 20
"""Newton steps from there: a point of the segment takes one or none."""


def examined(shared: SharedLoss, found: Equilibrium, *, near: Tensor | None = None) -> Equilibrium:
    """Return the minimiser that is nearest to ``near (d,)``, and how many others there are.

    Parameters
    ----------
    shared : SharedLoss
        What was minimised.
    found : Equilibrium
        One of its minimisers; returned as it is if it misses its tolerance.
    near : Tensor, optional
        Where a run ended; ``found.rho`` when absent.

    Returns
    -------
    Equilibrium
        Not ``converged`` if there is a segment of minimisers, of ``length``, or no end to them, an
        infinite one. Shifts that no point sees are counted and do not matter.
    """
    near = found.rho if near is None else near
    if not found.converged and shared.population.regularizer.kink > 0:
        found = _off_the_edge(shared, found, near)
    if not found.converged:
        return found
    point = shared.at(found.rho, found.theta)
    flat = _flat_directions(shared, point)
    if flat.shape[1] == 0:
        return found
    unseen, rest = _told_apart(shared, flat)
    if unseen.shape[1]:
        shift = unseen @ (unseen.T @ (near - point.rho))
        point = shared.at(point.rho + shift, point.theta + shift)
    length = 0.0
    if rest.shape[1]:
        point, length = _nearest(shared, point, rest, near)
    blurred = length <= _blur(point.rho)
    return replace(
        found,
        rho=point.rho,
        theta=point.theta,
        residual=point.residual,
        local_residual=point.local_residual,
        converged=blurred,
        length=0.0 if blurred else length,
        shifts=unseen.shape[1],
    )


def _off_the_edge(shared: SharedLoss, found: Equilibrium, near: Tensor) -> Equilibrium:
    """Return a minimiser next to one that a search came near, where many are.

    Newton's method ends on the edge of a segment of minimisers, where a user of l2 is about to
    leave its kink and local solves lose their digits. Inside they do not: a step along the segment
    leads there, or a pull towards ``near`` that fades.
    """
    point = shared.at(found.rho, found.theta)
    size = 1 + torch.linalg.vector_norm(point.rho)
    for direction in _flat_directions(shared, point).T:
        for length in STRIDES:
            for side in (-1.0, 1.0):
                start = point.rho + side * length * size * direction
                tried = minimise(shared, start, max_iterations=FEW)
                if tried.converged:
                    return tried
    start = near
    for share in PULLS:
        pulled = shared.anchored(near, share * shared.population.regularizer.kink)
        start = minimise(pulled, start).rho
    return minimise(shared, start)


def _blur(rho: Tensor) -> float:
    return BLUR * (1 + float(torch.linalg.vector_norm(rho)))


def _flat_directions(shared: SharedLoss, point: SharedPoint) -> Tensor:
    """Return an orthonormal basis ``(d, m)`` of the directions without curvature to speak of."""
    none = point.rho.new_zeros((len(point.rho), 0))
    if point.kink > 0:
        norm = torch.linalg.vector_norm(point.smooth)
        # Inside the ball F rises in all directions; on its boundary, in all but one.
        edge = bool(norm >= point.kink * (1 - EDGE))
        return -(point.smooth / norm)[:, None] if edge else none
    hessian = _outer_hessian(shared, point)
    if not bool(hessian.isfinite().all()):
        return none
    values, vectors = torch.linalg.eigh(hessian)
    flat: Tensor = vectors[:, values <= TOLERANCE / _blur(point.rho)]
    return flat


def _outer_hessian(shared: SharedLoss, point: SharedPoint) -> Tensor:
    """Return F's Hessian where users on the edge of a kink of l2 have just left it.

    There ``H_R`` is infinite across the user's pull ``u`` and 0 along it, and the parallel sum with
    H_L is ``H_L - H_L u u^T H_L / u^T H_L u``.
    """
    population, kink = shared.population, shared.population.regularizer.kink
    hessian = shared.hessian(point)
    if kink == 0:
        return hessian
    identity = torch.eye(len(point.rho), dtype=hessian.dtype, device=hessian.device)
    pulls = population.gradient(point.theta)
    for row, (theta, pull) in enumerate(zip(point.theta, pulls, strict=True)):
        norm = torch.linalg.vector_norm(pull)
        close = torch.linalg.vector_norm(point.rho - theta) <= EDGE * _blur(point.rho)
        if not bool(close & (norm >= kink * (1 - EDGE))):
            continue
        local = population.hessian(row, theta)
        across = local @ (pull / norm)
        outer = local - torch.outer(across, across) / (across @ (pull / norm))
        hessian += outer - envelope_hessian(
            local, population.regularizer, point.rho, theta, identity
        )
    return hessian


def _told_apart(shared: SharedLoss, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Return bases of the flat directions that no point sees, and of the others.

    At ``theta = 0`` no loss is saturated: what has no curvature there has none anywhere.
    """
    population, dim = shared.population, len(flat)
    zero, losses = flat.new_zeros(dim), flat.new_zeros((dim, dim))
    for row in range(population.size):
        losses += population.hessian(row, zero)
    values, vectors = torch.linalg.eigh(flat.T @ losses @ flat)
    unseen = values <= UNSEEN * losses.diagonal().max()
    return flat @ vectors[:, unseen], flat @ vectors[:, ~unseen]


def _nearest(
    shared: SharedLoss, point: SharedPoint, flat: Tensor, near: Tensor
) -> tuple[SharedPoint, float]:
    """Return the minimiser nearest to ``near`` in flat directions, and how far they go on.

    Those of l2 lie on a line. Where F falls for ever it does so the way that rho came, from 0.
    """
    longest = 0.0
    ways = (near - point.rho, point.rho, flat[:, 0])
    for way in ways if flat.shape[1] > 1 else ways[-1:]:
        within = flat @ (flat.T @ way)
        norm = torch.linalg.vector_norm(within)
        if not bool(norm > EDGE * (1 + torch.linalg.vector_norm(way))):
            continue
        direction = within / norm
        low, high = (_extent(shared, point, side * direction) for side in (-1.0, 1.0))
        longest = max(longest, low + high)
        if math.isinf(longest):
            break
        place = min(max(float(direction @ (near - point.rho)), -low), high)
        point = shared.at(point.rho + place * direction, point.theta)
    return point, longest


def _extent(shared: SharedLoss, point: SharedPoint, direction: Tensor) -> float:
    """Return how far minimisers go on from one in a direction ``(d,)``; infinite without end."""

    def rests(length: float) -> bool:
        shift = length * direction
        there = shared.at(point.rho + shift, point.theta + shift)
        return there.residual <= SLACK * TOLERANCE

    most = FAR * (1 + float(torch.linalg.vector_norm(point.rho)))
    length = _blur(point.rho) / 2
    if not rests(length):
        return 0.0
    while rests(2 * length):
        length *= 2
        if length > most:
            return math.inf
    low, high = length, 2 * length
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rests(middle) else (low, middle)
    return low
