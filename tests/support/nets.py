"""Small torch modules, each a factory of a point's shape and the number of scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfl_flower.objective.modules import ModuleModel
from pfl_flower.objective.networks import cnn


def linear(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The linear model with a bias, which starts at 0 as the built-in one does."""
    layer = nn.Linear(math.prod(shape), outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer)


def mlp(shape: tuple[int, ...], outputs: int, *, hidden: int = 5) -> nn.Module:
    """Two layers with layer norm in between."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), hidden),
        nn.LayerNorm(hidden),
        nn.Tanh(),
        nn.Linear(hidden, outputs),
    )


def small_cnn(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The built-in network, narrower."""
    return cnn(shape, outputs, channels=2)


def lazy(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A module that learns its sizes from the first points that it sees."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(outputs))


class Tied(nn.Module):
    """One parameter under two names, parameters of no layer, a buffer, and a functional forward."""

    scale: Tensor

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        size = math.prod(shape)
        self.first = nn.Parameter(torch.randn(size, 3) / size**0.5)
        self.last = nn.Parameter(torch.randn(3, outputs))
        self.again = self.first
        self.register_buffer("scale", torch.linspace(0.5, 1.5, size))

    def forward(self, points: Tensor) -> Tensor:
        rows = points.flatten(1) * self.scale
        return (functional.softplus(rows @ self.first) + rows @ self.again) @ self.last


Factory = Callable[[tuple[int, ...], int], nn.Module]

NETS: dict[str, tuple[Factory, tuple[int, ...]]] = {
    "linear": (linear, (7,)),
    "mlp": (mlp, (7,)),
    "mlp of images": (mlp, (2, 3, 3)),
    "cnn": (small_cnn, (2, 5, 6)),
    "lazy": (lazy, (1, 2, 4)),
    "tied": (Tied, (7,)),
}
"""Factories, and the shape of the points that each is tried on."""


def made(
    factory: Factory, shape: tuple[int, ...], outputs: int, *, bias: bool = True, **more: object
) -> ModuleModel:
    """Return a model of a factory."""

    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            module = factory(shape, outputs)
            module(torch.zeros(1, *shape))
            return module

    return ModuleModel(
        inputs=math.prod(shape) + bias,
        outputs=outputs,
        shape=shape,
        make=make,
        module=make(0),
        **more,  # type: ignore[arg-type]
    )
