"""Lengths of vectors, and whether they are finite, whatever the size of their entries."""

from __future__ import annotations

import torch
from torch import Tensor


def length(vector: Tensor) -> Tensor:
    """Return ``||v||`` of ``(..., d)`` as ``(..., 1)``, scaled so that no square underflows.

    >>> length(torch.tensor([3e-200, 4e-200], dtype=torch.float64)).item()
    5e-200
    """
    # In double, squares leave the range of numbers below 1e-154 and above 1e154. Of 0 it is 0.
    tiny = torch.finfo(vector.dtype).tiny
    scale = vector.abs().amax(dim=-1, keepdim=True).clamp(min=tiny)
    return scale * torch.linalg.vector_norm(vector / scale, dim=-1, keepdim=True)


def norm(vectors: Tensor) -> Tensor:
    """Return ``||v||`` of ``(..., d)`` as ``(...)``; ``length``'s where squares overflow.

    >>> norm(torch.tensor([[3.0, 4.0], [3e30, 4e30]]))
    tensor([5.0000e+00, 5.0000e+30])
    """
    plain = torch.linalg.vector_norm(vectors, dim=-1)
    if bool(plain.isfinite().all()):
        return plain
    return torch.where(plain.isfinite(), plain, length(vectors)[..., 0])


def finite(vectors: Tensor) -> Tensor:
    """Whether all entries of ``(..., d)`` are finite numbers, ``(...)``.

    >>> finite(torch.tensor([[1.0, -2.0], [1.0, -torch.inf], [torch.nan, 1.0]]))
    tensor([ True, False, False])
    """
    # The largest entry keeps what is not finite, and costs a fifth of an answer for each.
    return torch.isfinite(vectors.abs().amax(dim=-1))
