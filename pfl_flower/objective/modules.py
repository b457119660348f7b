"""A ``torch.nn.Module`` as a model: its parameters are one vector, gradients come from torch.func.

theta holds the parameters in the order of ``named_parameters()``, each flattened row by row,
without those that stay frozen:

    theta = [vec(p_1), ..., vec(p_m)],     d = sum_i numel(p_i)

On the CPU a thread works on one user at a time, on tensors of its own: what MKL makes of a matrix
depends on where it begins in memory, in a batch of users differently for each. On a card they are
batched by ``vmap``, always as many, and batches of fewer are filled up: layers choose their
algorithm by the size of the batch. So a user's bits do not depend on who shares its node.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from pfl_flower.objective.models import Model
from pfl_flower.support.threads import each, one_thread

NUMBERS_ON_A_CARD = 2**26
"""Activations of the users that a card works on at once: 256 MiB in single precision."""
MOST_USERS = 32
"""Most of them: a node with one user works for so many."""
POINTS_AT_ONCE = 2**23
"""Activations of a user's points that are held at a time while a sum over them is made: 32 MiB in
single precision."""

Slope = Callable[[Tensor, slice, slice], Tensor]
"""From scores ``(j, p, c)`` of slices of the users and of the points to a sum's derivative."""


@dataclass(frozen=True, repr=False)
class ModuleModel(Model):
    """``scores = module(points)`` with the parameters in theta, and frozen ones as they are.

    Parameters
    ----------
    shape : tuple of int
        Of a point as the module sees it: ``(features,)`` or ``(channels, height, width)``. Features
        beyond these, the constant one, are not shown to it.
    make : callable
        From a seed to the module as it is initialised with it.
    module : Module
        One of these, whose frozen parameters and buffers are the run's.
    frozen : frozenset of str
        Names of the parameters that are not in theta.
    activations : int
        Numbers that one point becomes on its way through the module.
    """

    shape: tuple[int, ...]
    make: Callable[[int], nn.Module]
    module: nn.Module
    frozen: frozenset[str] = frozenset()
    activations: int = 1
    _cache: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = field(
        default_factory=dict, init=False, compare=False
    )

    @cached_property
    def parameters(self) -> dict[str, torch.Size]:
        """Names and shapes of the parameters in theta, in their order there."""
        named = self.module.named_parameters()
        return {name: value.shape for name, value in named if name not in self.frozen}

    @cached_property
    def dim(self) -> int:
        """``sum_i numel(p_i)``."""
        return sum(shape.numel() for shape in self.parameters.values())

    def __repr__(self) -> str:
        """Return what the scores depend on besides theta, and the start: the cache knows by it."""
        digest = hashlib.sha256()
        start = self.initial(1, torch.Generator().manual_seed(0), torch.float64)
        for value in (start, *self.kept(torch.float64, torch.device("cpu")).values()):
            digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
        names = ", ".join(sorted(self.frozen))
        return f"ModuleModel({self.shape}, {self.module}, {names}, {digest.hexdigest()})"

    def scores(self, theta: Tensor, features: Tensor) -> Tensor:
        """Scores ``(k, n, c)``: a user at a time on shared points, else as in ``backward``."""
        if features.dim() == 2:
            with one_thread():
                return torch.cat([self._in_blocks(one[None], features[None], 1) for one in theta])
        width = self._width(features)
        tasks = [(theta[some], features[some], width) for some in self._groups(len(theta), width)]
        return torch.cat(_done(self._in_blocks, tasks, theta.device))

    def backward(self, theta: Tensor, features: Tensor, slope: Slope) -> Tensor:
        """Return the gradient ``(k, d)`` of a sum over points, some users and points at a time.

        Parameters
        ----------
        theta, features : Tensor
            ``(k, d)`` and ``(k, n, q)``.
        slope : callable
            From scores to the sum's derivative in them.
        """
        width = self._width(features)

        def work(users: slice) -> Tensor:
            models, count = _filled(theta[users], width), users.stop - users.start
            gradient = torch.zeros_like(theta[users])
            for part in self._blocks(features.shape[1]):
                forward = partial(self._forward, points=self._points(features[users, part], width))
                with _reproducible(theta.device):
                    scores, pull = _vjp(forward, models)
                    back = torch.zeros_like(scores, memory_format=torch.contiguous_format)
                    back[:count] = slope(scores[:count].contiguous(), users, part)
                    gradient += pull(back)[:count]
            return gradient

        tasks = [(users,) for users in self._groups(len(theta), width)]
        return torch.cat(_done(work, tasks, theta.device))

    def initial(self, users: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Return the module's own initialisation from a seed of the generator's, for all users."""
        seed = int(torch.randint(2**62, (), generator=generator))
        named = dict(self.make(seed).named_parameters())
        start = [named[name].detach().reshape(-1).to(dtype) for name in self.parameters]
        return torch.cat(start).repeat(users, 1)

    def _points(self, features: Tensor, width: int) -> Tensor:
        """Return features ``(j, p, q)`` as points ``(w, p, *shape)``, without the constant one."""
        shown = features[..., : math.prod(self.shape)]
        return _filled(shown, width).view(width, -1, *self.shape)

    def _width(self, features: Tensor) -> int:
        """Return how many users are worked on at once, from what each of them has alone."""
        return users_at_once(features.device, features.shape[1] * self.activations)

    def _groups(self, users: int, width: int) -> Iterator[slice]:
        """Yield users who are worked on at once; the last may be fewer."""
        return (slice(first, min(first + width, users)) for first in range(0, users, width))

    def _blocks(self, points: int) -> Iterator[slice]:
        """Yield points that are held at once."""
        size = max(1, POINTS_AT_ONCE // self.activations)
        return (slice(first, min(first + size, points)) for first in range(0, points, size))

    def _in_blocks(self, theta: Tensor, features: Tensor, width: int) -> Tensor:
        models, blocks = _filled(theta, width), self._blocks(features.shape[1])
        with _reproducible(theta.device):
            parts = [
                self._forward(models, self._points(features[:, part], width)) for part in blocks
            ]
        return torch.cat(parts, dim=1)[: len(theta)]

    def _forward(self, theta: Tensor, points: Tensor) -> Tensor:
        """Scores ``(w, p, c)`` of ``theta (w, d)`` on ``points (w, p, *shape)``."""
        if len(theta) == 1:
            return self._call(theta[0], points[0])[None]
        scores: Tensor = vmap(self._call)(theta, points)
        return scores

    def _call(self, theta: Tensor, points: Tensor) -> Tensor:
        """Scores ``(p, c)`` of one user: ``theta (d,)`` on its points ``(p, *shape)``."""
        pieces = torch.split(theta, [shape.numel() for shape in self.parameters.values()])
        named = zip(self.parameters.items(), pieces, strict=True)
        given = {name: piece.view(shape) for (name, shape), piece in named}
        kept = self.kept(theta.dtype, points.device)
        scores: Tensor = functional_call(_own(self.module), {**given, **kept}, (points,))
        return scores

    def kept(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Return frozen parameters and buffers, which are the same for all users."""
        if (dtype, device) not in self._cache:
            named = [(n, p) for n, p in self.module.named_parameters() if n in self.frozen]
            self._cache[dtype, device] = {
                name: value.detach().to(device, dtype if value.is_floating_point() else None)
                for name, value in [*named, *self.module.named_buffers()]
            }
        return self._cache[dtype, device]


_modules = threading.local()
"""``copies``: by module, the one in which this thread puts parameters in their places."""


def _own(module: nn.Module) -> nn.Module:
    """Return this thread's copy of a module, with the same tensors."""
    if not hasattr(_modules, "copies"):
        _modules.copies = weakref.WeakKeyDictionary()
    copies = _modules.copies
    if module not in copies:
        shared = {id(value): value for value in [*module.parameters(), *module.buffers()]}
        copies[module] = copy.deepcopy(module, shared)
    found: nn.Module = copies[module]
    return found


def _done(
    work: Callable[..., Tensor], tasks: list[tuple[Any, ...]], device: torch.device
) -> list[Tensor]:
    """Return what the tasks give: on the CPU a task a thread."""
    if device.type == "cpu":
        return each(work, tasks)
    return [work(*task) for task in tasks]


def users_at_once(device: torch.device, activations: int) -> int:
    """Return how many users with so many activations each are worked on at once."""
    if device.type == "cpu":
        return 1
    return max(1, min(MOST_USERS, NUMBERS_ON_A_CARD // activations))


def _vjp(
    forward: Callable[[Tensor], Tensor], theta: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return scores, and what maps a derivative in them to one in theta."""
    answer: tuple[Any, ...] = vjp(forward, theta)
    scores, pull = answer
    return scores, lambda back: pull(back)[0]


def _filled(values: Tensor, width: int) -> Tensor:
    """Return ``(width, ...)`` in memory of its own: the rows, and copies of the last one."""
    more = values[-1:].expand(width - len(values), *values.shape[1:])
    return torch.cat([values, more])


def _reproducible(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Let cuDNN use only what gives the same bits again, in full precision."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags
