"""What rules spend their time on: against torch's own to the bit, and against long doubles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pfl_flower.aggregation import kernels
from pfl_flower.aggregation.rules import median, trimmed_mean
from pfl_flower.support.seeding import generator

SHAPES = [(1, 1), (1, 70), (2, 5), (7, 64), (50, 1000), (129, 33), (700, 129)]
DTYPES = [torch.float32, torch.float64]


def normal(rows: int, dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = generator(1, "rows", rows, dim)
    return torch.randn((rows, dim), generator=draw, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("entries", [1, 1 << 12, 1 << 30])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_the_whole_to_the_bit(
    shape: tuple[int, int], dtype: torch.dtype, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was without blocks: the sort of torch, and its sum over rows."""
    monkeypatch.setattr(kernels, "ENTRIES", entries)
    rows = normal(*shape, dtype)
    k, ordered = len(rows), rows.sort(dim=0).values
    cut = (k - 1) // 3
    kept = ordered[cut : k - cut]
    assert torch.equal(median(rows), k * (ordered[(k - 1) // 2] / 2 + ordered[k // 2] / 2))
    divided = (kept / len(kept)).sum(dim=0)
    few = torch.from_numpy(np.add.reduce(kept.numpy(), axis=0) / len(kept))
    expected = k * (few if len(kept) <= kernels.FEW else divided)
    assert torch.equal(trimmed_mean(rows, tolerance=cut), expected)
    close = 64 * torch.finfo(dtype).eps * rows.abs().max()
    assert (expected / k - divided).abs().max() <= close
    assert torch.equal(kernels.mean(rows), (rows / k).sum(dim=0))
    chosen = torch.arange(k - 1, -1, -2)
    assert torch.equal(kernels.mean_of(rows, chosen), (rows[chosen] / len(chosen)).sum(dim=0))
    assert torch.equal(rows, normal(*shape, dtype))


def column(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def exact(rows: Tensor) -> np.ndarray:
    """All distances, in long doubles."""
    wide = rows.double().numpy().astype(np.longdouble)
    return np.array([np.sqrt(((wide - row) ** 2).sum(axis=1)) for row in wide])


ROWS = {
    "normal": lambda rows: rows,
    "alike but for the last digits": lambda rows: 1e3 + 1e-9 * rows,
    "two lengths": lambda rows: rows * column([1e-8, 1e8] * 6),
    "some equal": lambda rows: rows[[0, 1, 0, 1, 2, 3, 0, 0, 4, 5, 6, 7]],
    "huge": lambda rows: 1e307 * rows / rows.abs().max(),
    "tiny": lambda rows: 1e-300 * rows,
    "huge beside tiny": lambda rows: rows * column([1e290, 1e-290, 1.0] * 4),
    "least": lambda rows: (5 * rows).round() * 5e-324,
}


@pytest.mark.parametrize("name", ROWS)
def test_distances_are_right_to_the_last_digits(name: str) -> None:
    rows = ROWS[name](normal(12, 300))
    found = kernels.distances(rows)
    assert torch.equal(found, found.mT)
    assert not found.diagonal().any()
    wanted = exact(rows)
    # Of d squares summed in a row each addition rounds, and most of that cancels.
    np.testing.assert_allclose(found.numpy(), wanted.astype(np.float64), rtol=1e-14, atol=5e-324)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_distances_are_equal_to_the_bit(dtype: torch.dtype) -> None:
    """Mirrored and permuted pairs of rows tie, wherever they stand."""
    rows = normal(5, 333, dtype)
    found = kernels.distances(torch.cat([rows, -rows]))
    assert torch.equal(found[:5, :5], found[5:, 5:])
    order = torch.randperm(5, generator=generator(1, "order"))
    assert torch.equal(kernels.distances(rows[order]), found[:5, :5][order][:, order])


def test_powers_of_two_leave_the_digits() -> None:
    rows = normal(6, 40)
    near = kernels.distances(rows)
    for power in (-1060, -900, -500, 500, 1000):
        half = 2.0 ** (power // 2)
        scaled = rows.float().double() * half * (2.0**power / half)
        if power > -1000:
            expected = kernels.distances(rows.float().double())
            assert torch.equal(kernels.distances(scaled) / half / (2.0**power / half), expected)
        else:
            assert kernels.distances(scaled).isfinite().all()
    assert (near + torch.eye(6, dtype=near.dtype) > 0).all()
