"""Features of which most are zero, kept as the others alone: by rows, and again by columns.

Of MNIST's pixels four in five are black. A linear model's scores and gradient are products with the
features and with their transpose, where a zero adds nothing; each product takes the numbers in the
order that suits it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

DENSEST = 0.25
"""Share of non-zero features up to which this pays: from a third on a dense product is as fast."""


@dataclass(frozen=True)
class Compressed:
    """``features (n, q)`` without their zeros, in each order from the first product that needs it.

    >>> kept = Compressed(torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]))
    >>> kept.scores(torch.tensor([[1.0, 2.0, 4.0]]))
    tensor([[12.],
            [ 0.]])
    >>> kept.pull_back(torch.tensor([[2.0], [5.0]]))
    tensor([[0., 0., 6.]])
    """

    features: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Compressed | None:
        """Return ``features (n, q)`` compressed, or None where that does not pay.

        What is decided, and so every bit of the products, depends on these features alone.
        """
        return cls(features) if pays(features) else None

    @cached_property
    def rows(self) -> Tensor:
        """``(n, q)``, as compressed sparse rows."""
        return _compressed_rows(self.features)

    @cached_property
    def columns(self) -> Tensor:
        """The transpose, ``(q, n)``, as compressed sparse rows."""
        return _compressed_rows(self.features.T)

    def scores(self, weights: Tensor) -> Tensor:
        """``X W^T``, ``(n, c)``, for ``weights (c, q)``."""
        # Weights of a user's own memory: rows of a batch begin anywhere, see ``aligned``.
        return self.rows @ weights.T.clone(memory_format=torch.contiguous_format)

    def pull_back(self, slopes: Tensor) -> Tensor:
        """``S^T X``, ``(c, q)``, for ``slopes (n, c)``."""
        return (self.columns @ slopes).T


def pays(features: Tensor) -> bool:
    """Whether products with the numbers that are not zero take less time than with all."""
    # Without MKL torch multiplies sparse matrices by a loop that is slower than a dense product.
    return (
        features.is_cpu
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and int(torch.count_nonzero(features)) <= DENSEST * features.numel()
    )


def _compressed_rows(matrix: Tensor) -> Tensor:
    """Return a matrix as compressed sparse rows, with the short indices that MKL takes."""
    count = int(torch.count_nonzero(matrix))
    # What is kept is allocated before what is not, or the heap ends up with three times as much.
    starts = torch.empty(len(matrix) + 1, dtype=torch.int32)
    columns = torch.empty(count, dtype=torch.int32)
    values = torch.empty(count, dtype=matrix.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        found = matrix.contiguous().to_sparse_csr()
        starts.copy_(found.crow_indices())
        columns.copy_(found.col_indices())
        values.copy_(found.values())
        return torch.sparse_csr_tensor(
            starts, columns, values, matrix.shape, check_invariants=False
        )
