"""Networks that are built in."""

from __future__ import annotations

import math

from torch import nn

from pfl_flower.support.errors import ConfigError

GROUPS = 4
"""Of group norm, where so many divide the channels."""


def cnn(shape: tuple[int, ...], outputs: int, *, channels: int = 8) -> nn.Module:
    """Return two convolutions with group norm, each halving the image, and a linear layer.

    Batch norm would make a user's model depend on statistics that are no parameters; group norm
    has none (Wu and He 2018), which is why federated learning uses it (Hsieh et al. 2020).

    Parameters
    ----------
    shape : tuple of int
        ``(channels, height, width)`` of the images.
    outputs : int
        Scores.
    channels : int
        Of the first convolution; the second has twice as many.

    Raises
    ------
    ConfigError
        If the points are not images.

    Examples
    --------
    >>> sum(p.numel() for p in cnn((1, 28, 28), 10).parameters())
    9274
    """
    if len(shape) != 3:
        raise ConfigError(f"model = cnn: expected images, and a point is {shape[0]} numbers")
    colours, height, width = shape
    groups = math.gcd(channels, GROUPS)
    left = math.ceil(height / 4) * math.ceil(width / 4)
    return nn.Sequential(
        nn.Conv2d(colours, channels, 5, stride=2, padding=2),
        nn.GroupNorm(groups, channels),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.GroupNorm(groups, 2 * channels),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * left, outputs),
    )
