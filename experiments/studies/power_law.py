"""How fast one thing grows with another."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the p of ``values ~ sizes^p``: least squares in log-log scale.

    >>> round(exponent([1, 10, 100], [3.0, 30.0, 300.0]), 12)
    1.0
    """
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x))
