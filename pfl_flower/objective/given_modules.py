"""Modules that a script gives as they are: what they are when given is kept."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter


class GivenModule:
    """Makes copies of a module as it was: a factory, as a plug-in is one.

    Parameters
    ----------
    module : Module
        Whose parameters are the start of all models.
    """

    def __init__(self, module: nn.Module) -> None:
        # The original is kept for its identity, which is this one's as long as it lives.
        self.original, self.kept = module, copy.deepcopy(module).cpu()
        self.__name__ = type(module).__name__

    def __call__(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Return a copy; the data must have the shape that it was made for."""
        return copy.deepcopy(self.kept)


_given: dict[tuple[int, str], GivenModule] = {}


def as_factory(module: nn.Module) -> GivenModule:
    """Return the factory of a module: another one once its parameters were changed.

    >>> layer = nn.Linear(2, 1)
    >>> first, again = as_factory(layer), as_factory(layer)
    >>> _ = nn.init.zeros_(layer.bias)
    >>> first is again, as_factory(layer) is first
    (True, False)
    """
    digest = hashlib.sha256(repr((module, module.training)).encode())
    digest.update(repr([value.requires_grad for value in module.parameters()]).encode())
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        if not isinstance(value, UninitializedParameter):
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    key = id(module), digest.hexdigest()
    if key not in _given:
        _given[key] = GivenModule(module)
    return _given[key]
