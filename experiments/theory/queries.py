"""What honest users ask about: the distributions of queries in local PAC* learning."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

DIM = 6


def normal_queries(points: int, draw: torch.Generator) -> Tensor:
    """Return standard normal queries ``(n, d)``: sub-Gaussian, as Theorem 2 asks."""
    return torch.randn((points, DIM), generator=draw, dtype=torch.float64)


def cube_queries(points: int, draw: torch.Generator) -> Tensor:
    """Return queries uniform in a cube, with unit variance: bounded, as Theorem 3 asks."""
    uniform = torch.rand((points, DIM), generator=draw, dtype=torch.float64)
    return math.sqrt(12) * (uniform - 0.5)


def axis_queries(points: int, draw: torch.Generator) -> Tensor:
    """Return coordinate vectors: their support is bounded, spans R^d and has no interior."""
    return torch.eye(DIM, dtype=torch.float64)[torch.randint(DIM, (points,), generator=draw)]


Queries = Callable[[int, torch.Generator], Tensor]
