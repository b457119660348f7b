"""Features of which many are zero, kept as the others alone, row by row.

Of MNIST's pixels four in five are black. A linear model's scores and gradient are products with the
features and with their transpose, where a zero adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

TYPES = (torch.float32, torch.float64)
MOST = 16
"""Columns at a time: 64 bytes in single precision, the longest register there is."""
DENSEST = 0.55
"""Share of numbers that are not zero up to which this pays with four outputs or more: where half
are not, the dense products take 1.05 to 1.4 times as long, where 0.7 are not, 0.75 to 0.9."""
WIDE = 0.4
"""The same with more than sixteen, for each sixteen of which the numbers are read again."""
OF_ONE = 0.15
"""The same with one output, whose dense product is bound by memory; with two and three outputs as
many times that. Measured where 0.2 to 0.7 of 785 and 3,073 features are not zero."""


@dataclass(frozen=True)
class Compressed:
    """``features (n, q)`` without their zeros, from the first product on.

    >>> kept = Compressed(torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]))
    >>> kept.scores(torch.tensor([[1.0, 2.0, 4.0]]))
    tensor([[12.],
            [ 0.]])
    >>> kept.pull_back(torch.tensor([[2.0], [5.0]]))
    tensor([[0., 0., 6.]])
    """

    features: Tensor

    @cached_property
    def count(self) -> int:
        """How many of the numbers are not zero."""
        return int(torch.count_nonzero(self.features))

    def pays(self, outputs: int) -> bool:
        """Whether products with so many columns, if any, take less time without the zeros.

        What is decided, and so every bit of the products, depends on features and model alone.
        """
        if outputs == 0 or not self.features.is_cpu or self.features.dtype not in TYPES:
            return False
        densest = min(DENSEST, OF_ONE * outputs) if outputs <= MOST else WIDE
        return self.count <= densest * self.features.numel()

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where each row's numbers begin ``(n + 1,)``, their columns (int32) and their values."""
        row, column = self.features.nonzero().unbind(dim=1)
        starts = torch.searchsorted(row.contiguous(), torch.arange(len(self.features) + 1))
        return starts, column.to(torch.int32), self.features[row, column]

    def scores(self, weights: Tensor) -> Tensor:
        """``X W^T``, ``(n, c)``, for ``weights (c, q)``; a class's scores lie side by side."""
        # Where nothing is multiplied this way LLVM, a twentieth of a second, is not loaded.
        from pfl_flower.objective.sparse_kernels import scores_kernel

        points, inputs = self.features.shape
        self._check(weights, inputs)
        scores = weights.new_empty((len(weights), points))
        for some, into in zip(torch.split(weights, MOST), torch.split(scores, MOST), strict=True):
            operand = weights.new_zeros((inputs, _lanes(len(some))))
            operand[:, : len(some)] = some.T
            kernel = scores_kernel(len(some), operand.shape[1], weights.dtype)
            kernel(points, *self.rows, operand, into)
        return scores.T

    def pull_back(self, slopes: Tensor) -> Tensor:
        """``S^T X``, ``(c, q)``, for ``slopes (n, c)``, best laid out as ``scores`` are."""
        from pfl_flower.objective.sparse_kernels import sums_kernel

        points, inputs = self.features.shape
        self._check(slopes.T, points)
        sums = []
        for some in torch.split(slopes.T.contiguous(), MOST):
            into = slopes.new_zeros((inputs, _lanes(len(some))))
            sums_kernel(len(some), into.shape[1], slopes.dtype)(points, *self.rows, some, into)
            sums.append(into[:, : len(some)].T)
        return sums[0] if len(sums) == 1 else torch.cat(sums)

    def _check(self, operand: Tensor, width: int) -> None:
        """Refuse what would be read past its end or as something else, or that wants derivatives.

        Raises
        ------
        ValueError
            For another width or type than the features', or an operand with ``requires_grad``.
        """
        if operand.shape[1:] != (width,) or operand.dtype != self.features.dtype:
            found = f"{tuple(operand.shape)} of {operand.dtype}"
            raise ValueError(f"{found}: expected (c, {width}) of {self.features.dtype}")
        if operand.requires_grad and torch.is_grad_enabled():
            raise ValueError("no derivatives are kept here: multiply with the features themselves")


def _lanes(columns: int) -> int:
    """Return how many numbers lie side by side: a power of two, as registers have them."""
    return 1 << (columns - 1).bit_length()
