"""Lengths of vectors, and whether they are finite, whatever the size of their entries."""

from __future__ import annotations

import math

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
    # To look whether that is so, a card would have to be waited for.
    if plain.is_cpu and bool(plain.isfinite().all()):
        return plain
    return torch.where(plain.isfinite(), plain, length(vectors)[..., 0])


def copied(tensor: Tensor) -> Tensor:
    """Return a copy; on a card it is made when the first of the two is written to.

    Mostly that is never: what is copied is read. There each copy would cost as much as a sum.
    """
    return tensor.clone() if tensor.is_cpu else torch._lazy_clone(tensor)


def ratio(vector: Tensor, divisor: float) -> Tensor:
    """Return ``v / s`` of ``(d,)``, s > 0: as long a multiple of v as is finite, where that is not.

    >>> ratio(torch.tensor([3.0, -4.0]), 2.0), ratio(torch.tensor([3.0, -4.0]), 1e-38).isfinite()
    (tensor([ 1.5000, -2.0000]), tensor([True, True]))
    """
    # A quarter of the range is left for what is added to it.
    limit = torch.finfo(vector.dtype).max / 4
    if not vector.is_cpu:
        # Nobody looks: a divisor that is too small is taken for the smallest that will do.
        return vector / (torch.linalg.vector_norm(vector, torch.inf) / limit).clamp(min=divisor)
    quotient = vector / divisor
    if bool(finite(quotient)):
        return quotient
    longest = vector / vector.abs().amax() * limit
    return torch.where(finite(quotient), quotient, longest)


def middle(vectors: Tensor) -> float:
    """Return a power of two that brings squares of the entries into the range of numbers.

    It is 1 where they are there already, to a quarter of the exponents.

    >>> middle(torch.ones(2, 2)), middle(torch.full((2, 2), 2.0**100))
    (1.0, 1.2676506002282294e+30)
    """
    largest = float(vectors.abs().amax())
    limit = math.log2(torch.finfo(vectors.dtype).max) / 4
    if not 0 < largest < math.inf or abs(math.log2(largest)) < limit:
        return 1.0
    return 2.0 ** math.floor(math.log2(largest))


def finite(vectors: Tensor) -> Tensor:
    """Whether all entries of ``(..., d)`` are finite numbers, ``(...)``.

    >>> finite(torch.tensor([[1.0, -2.0], [1.0, -torch.inf], [torch.nan, 1.0]]))
    tensor([ True, False, False])
    """
    # The largest entry keeps what is not finite, and costs a fifth of an answer for each.
    if not vectors.is_cpu:
        return torch.linalg.vector_norm(vectors, torch.inf, dim=-1) < torch.inf
    # What is finite is 0 times itself, of integers too.
    return vectors.abs().amax(dim=-1) * 0 == 0
