"""Users' matrices in memory, so that products of a user's own have bits that are its own.

BLAS chooses how to add by where a matrix begins in memory, the factors and the product alike. In a
batch ``(k, a, b)`` user n begins at ``n a b`` numbers: at another place in a line of the cache for
every n, unless each user's matrix is given whole lines. Then a product of a batch, on one thread,
has the bits that each user's has alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LINE = 64
"""Bytes: of a line of the cache, of the longest vector register, and where torch begins tensors."""
ONE_AT_A_TIME = 2**15
"""Multiplications of a user's product from which a call for each user costs next to nothing."""


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return ``(k, ...)`` without values, with room for whole lines of the cache for each row."""
    numbers, line = math.prod(shape[1:]), LINE // like.element_size()
    stride = -(-numbers // line) * line
    inner = [math.prod(shape[axis + 1 :]) for axis in range(1, len(shape))]
    return like.new_empty(shape[0] * stride).as_strided(shape, (stride, *inner))


def aligned(batch: Tensor) -> Tensor:
    """Return ``(k, ...)`` with the beginning of each row at a line; itself where that is so.

    >>> aligned(torch.zeros(3, 5, 5)).stride()
    (32, 5, 1)
    """
    if not batch.is_cpu or _is_aligned(batch):
        return batch
    made = empty(tuple(batch.shape), batch)
    made.copy_(batch)
    return made


def _is_aligned(batch: Tensor) -> bool:
    apart = batch.stride(0) * batch.element_size() % LINE == 0 or len(batch) == 1
    return batch.data_ptr() % LINE == 0 and apart and (len(batch) == 0 or batch[0].is_contiguous())


def product(left: Tensor, right: Tensor, *, transposed: bool = False) -> Tensor:
    """``left (k, a, b)`` times ``right (k, b, c)``, or its transpose ``right (k, c, b)``.

    On the CPU, on one thread, every user's bits are its own whoever is in the batch, if ``right``
    is as ``aligned`` makes it, or a block of rows of a single user's: wherever that begins in a
    line, it begins there for this user in any company.
    """
    if not left.is_cpu or left.requires_grad or right.requires_grad:
        right = right.mT if transposed else right
        # With as many users on both sides the same, in a fifth of the calls.
        return torch.bmm(left, right) if len(left) == len(right) else left @ right
    left = aligned(left)
    right = right.mT if transposed else right
    users, rows, columns = len(left), left.shape[1], right.shape[2]
    made = empty((users, rows, columns), left)
    # A product of a batch is slow where each is large.
    if rows * left.shape[2] * columns >= ONE_AT_A_TIME:
        for user in range(users):
            torch.mm(left[user], right[user], out=made[user])
        return made
    return torch.bmm(left, right, out=made)
