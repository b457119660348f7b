"""The least time a round can take: its bytes over the bandwidth, its flops over the matrix rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

BEST_OF = 5
BYTES = 2**28
SIDE = 2048


@dataclass(frozen=True, kw_only=True)
class Round:
    """Sizes of Figure 1's round: k users, n points, q features, c classes, m test points.

    ``share`` is the part of the features that is not zero: what is 0 need be neither kept nor
    multiplied, at the price of an index of 4 bytes with every other number.
    """

    users: int
    points: int
    features: int
    classes: int
    tests: int
    itemsize: int = 4
    share: float = 1.0

    @property
    def bytes(self) -> float:
        """Bytes that must move: every feature once, and Adam's parameters and moments both ways.

        A fused pass can use a block of features forwards and backwards while it is in the cache.
        """
        data = (self.users * self.points + self.tests) * self.features
        state = 6 * self.users * self.features * self.classes
        number = min(self.itemsize, self.share * (self.itemsize + 4))
        return number * data + self.itemsize * state

    @property
    def flops(self) -> float:
        """Flops of the matrix products: scores and gradients of the users, scores of the tests."""
        products = 2 * self.users * self.points + self.tests
        return 2 * self.share * products * self.features * self.classes

    def bound(self, bandwidth: float, rate: float) -> float:
        """Return the least seconds.

        >>> tiny = Round(users=1, points=1, features=1, classes=1, tests=0)
        >>> tiny.bytes, tiny.flops, tiny.bound(28.0, 4.0)
        (28, 4.0, 1.0)
        >>> Round(users=4, points=1, features=1, classes=1, tests=0, share=0.25).bytes
        104.0
        """
        return max(self.bytes / bandwidth, self.flops / rate)


def _best(work: Callable[[], object], device: str) -> float:
    seconds = []
    for _ in range(BEST_OF):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def bandwidth(device: str) -> float:
    """Return the bytes a second that a sum over 256 MiB of float32 reads."""
    values = torch.ones(BYTES // 4, device=device)
    return BYTES / _best(values.sum, device)


def matrix_rate(device: str) -> float:
    """Return the flops a second of a product of 2048 x 2048 float32 matrices."""
    left, right = (torch.ones((SIDE, SIDE), device=device) for _ in range(2))
    return 2 * SIDE**3 / _best(lambda: left @ right, device)
