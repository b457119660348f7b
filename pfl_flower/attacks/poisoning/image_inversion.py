"""Images with a wanted embedding: feature inversion by gradients (Appendix J.3's open problem).

    minimise over x in [0, 1]^(3 h w):   ||e(x) - w||^2 / ||w||^2 + beta TV(x)

e is the network up to the last layer's inputs, w the wanted embedding, TV the mean absolute
difference of neighbouring pixels (Mahendran and Vedaldi, "Understanding deep image representations
by inverting them", 2015). Pixels are ``sigmoid(z)``, so that every iterate is an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pfl_flower.data.vgg import VGG13, unit

MARGIN = 0.02
"""Distance from 0 and 1 at which pixels start: five grey levels, where the sigmoid still has a
thirteenth of its largest slope."""
STEPS, RATE = 200, 0.05
"""Of Adam on ``z = logit(x)``: a step changes a pixel by three grey levels at most, all of them can
take it from black to white."""


@dataclass(frozen=True)
class Inversion:
    """Images and how near their embeddings are.

    Attributes
    ----------
    images : Tensor
        Bytes ``(n, 3, h, w)``: what can be sent, after rounding to 256 levels.
    embeddings : Tensor
        Of these bytes, ``(n, 4096)``.
    distances : Tensor
        ``||e(x) - w|| / ||w||``, ``(n,)``.
    """

    images: Tensor
    embeddings: Tensor
    distances: Tensor


def total_variation(images: Tensor) -> Tensor:
    """Return each image's mean absolute difference of neighbouring pixels, ``(n,)``.

    >>> float(total_variation(torch.ones(1, 3, 4, 4)))
    0.0
    """
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().mean(dim=(1, 2, 3))
    across = (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3))
    return down + across


def relative_distance(embeddings: Tensor, wanted: Tensor) -> Tensor:
    """Return ``||e - w|| / ||w||`` of each row, ``(n,)``."""
    gaps = torch.linalg.vector_norm(embeddings - wanted, dim=1)
    return gaps / torch.linalg.vector_norm(wanted, dim=1)


def nearest(wanted: Tensor, known: Tensor) -> Tensor:
    """Return for each wanted embedding ``(n, q)`` the row of the nearest known one ``(m, q)``."""
    return torch.cdist(wanted, known).argmin(dim=1)


def invert(
    network: VGG13,
    wanted: Tensor,
    start: Tensor,
    *,
    steps: int = STEPS,
    lr: float = RATE,
    smoothness: float = 0.05,
    batch: int = 32,
    watch: Callable[[int, float], None] | None = None,
) -> Inversion:
    """Return images whose embeddings are near the wanted ones, by Adam on their pixels.

    Parameters
    ----------
    network : VGG13
        In evaluation mode; its parameters are left as they are.
    wanted : Tensor
        ``(n, 4096)``. Embeddings are non-negative: no image reaches a w with negative entries.
    start : Tensor
        Bytes ``(n, 3, h, w)``: natural images, say, with near embeddings.
    steps, lr
        Of Adam.
    smoothness : float
        beta, the weight of the prior.
    batch : int
        Images at a time.
    watch : callable, optional
        Told the number of images begun and the batch's mean relative distance, each step.

    Raises
    ------
    ValueError
        If there are not as many starts as wanted embeddings.
    """
    if len(start) != len(wanted):
        raise ValueError(f"start: expected {len(wanted)} images, and there are {len(start)}")
    parts = []
    for first in range(0, len(wanted), batch):
        rows = slice(first, first + batch)
        goal = wanted[rows].float()
        say = None if watch is None else partial(watch, first + len(goal))
        pixels = _descend(
            network,
            goal,
            unit(start[rows], goal.device),
            steps=steps,
            lr=lr,
            smoothness=smoothness,
            watch=say,
        )
        # What is judged are bytes: to a network rounding is noise of a 500th.
        parts.append((pixels * 255).round().to(torch.uint8))
    images = torch.cat(parts)
    with torch.no_grad():
        embeddings = torch.cat([network.embed(unit(part, wanted.device)) for part in parts])
    return Inversion(images, embeddings, relative_distance(embeddings, wanted.float()))


def _descend(
    network: VGG13,
    goal: Tensor,
    start: Tensor,
    *,
    steps: int,
    lr: float,
    smoothness: float,
    watch: Callable[[float], None] | None,
) -> Tensor:
    """Return the pixels ``(n, 3, h, w)`` in [0, 1] with the lowest objective met on the way."""
    free = torch.logit(start.clamp(MARGIN, 1 - MARGIN)).requires_grad_(True)
    optimizer = torch.optim.Adam([free], lr=lr)
    best, lowest = start, torch.full((len(goal),), torch.inf, device=goal.device)
    for step in range(steps + 1):
        pixels = torch.sigmoid(free)
        gaps = relative_distance(network.embed(pixels), goal) ** 2
        objective = gaps + smoothness * total_variation(pixels)
        # Adam's steps are long whatever the objective: the last image need not be the best.
        with torch.no_grad():
            lower = objective < lowest
            lowest = torch.where(lower, objective, lowest)
            best = torch.where(lower[:, None, None, None], pixels, best)
        if watch is not None:
            watch(float(gaps.detach().sqrt().mean()))
        if step < steps:
            (free.grad,) = torch.autograd.grad(objective.sum(), [free])
            optimizer.step()
    return best.detach()
