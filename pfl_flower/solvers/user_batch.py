"""Newton's systems of many users at once, small ones as batched tensor problems.

A user with n points and one score has a Hessian ``alpha I + X^T D X + beta u u^T`` with ``alpha``
and ``beta`` from nu and the regulariser, u the direction of ``rho - theta``. Where n < d the system
is solved in the space of the points (Woodbury's identity), with ``S = sqrt(D)``:

    (alpha I + X^T D X)^{-1} = (I - X^T S (alpha I + S X X^T S)^{-1} S X) / alpha

and the rank-one term by Sherman and Morrison's formula.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.regularizers import Regularizer, SquaredL2
from pfl_flower.objective.vectors import length, norm
from pfl_flower.solvers.newton import DENSE_LIMIT
from pfl_flower.support.memo import Memo, remembered

LEAST_USERS = 64
"""Users from which a batch is worth that a user's bits depend on who shares its node.

Eight at once are already five times faster than one at a time, 64 ten to fifty times.
"""
LARGEST_SYSTEM = 64
"""Size of a user's linear system above which it is solved by itself.

At 64 a batch is five times faster, at 100 two and a half times: factors, not calls, take the time.
"""
FEATURES_AT_ONCE = 2**18
"""Numbers of features in a part of the batch: 2 MiB in double, which a core's cache holds.

Parts of 2^16 take half as long again for their many calls; larger ones gain nothing.
"""
NUMBERS_ON_A_CARD = 2**26
"""The same for a CUDA device, of features or systems, 512 MiB: every operation on a part has a
price of its own there."""


def pays(loss: LocalLoss) -> bool:
    """Return whether the users of a loss are many and their systems small."""
    return loss.users >= LEAST_USERS and _system(loss) <= LARGEST_SYSTEM


def spares_waits(loss: LocalLoss) -> bool:
    """Return whether the users of a loss are on a card, several, and have dense systems.

    Single ones are looked at one after another, a dozen times in a round each: on a card that is
    what a round takes, where a step of all of them together is looked at twice.
    """
    return not loss.features.is_cpu and loss.users > 1 and _system(loss) <= DENSE_LIMIT


def _system(loss: LocalLoss) -> int:
    """Size of a user's linear system, in the space of the parameters or of the points."""
    return min(loss.model.dim, _points(loss))


def _points(loss: LocalLoss) -> int:
    """Size of the system in the space of the points; with several scores there is none."""
    return loss.features.shape[1] if loss.model.outputs == 1 else loss.model.dim


@dataclass(frozen=True)
class Batch:
    """Users with one regulariser; ``gram`` is ``X X^T``, ``(k, n, n)``, where n < d, else None."""

    loss: LocalLoss
    regularizer: Regularizer
    gram: Tensor | None
    memo: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)

    @classmethod
    def build(cls, loss: LocalLoss, regularizer: Regularizer) -> Batch:
        """Return the batch of a loss's users."""
        # X X^T, made once, saves the larger product of every later system.
        dual = _points(loss) < loss.model.dim
        gram = loss.features @ loss.features.transpose(1, 2) if dual else None
        return cls(loss, regularizer, gram)

    def select(self, index: Tensor | slice) -> Batch:
        """Return the users at ``index`` (a slice copies nothing)."""
        gram = None if self.gram is None else self.gram[index]
        return replace(self, loss=self.loss.select(index), gram=gram)

    def split(self) -> Iterator[tuple[slice, Batch]]:
        """Yield parts that fit into the cache."""
        most, numbers = FEATURES_AT_ONCE, self.loss.features[0].numel()
        if not self.loss.features.is_cpu:
            most, numbers = NUMBERS_ON_A_CARD, max(numbers, _system(self.loss) ** 2)
        size = max(1, most // numbers)
        if size >= self.loss.users:
            # Itself, with what it has worked out.
            yield slice(0, self.loss.users), self
            return
        yield from self._parts(size)

    @remembered
    def _parts(self, size: int) -> list[tuple[slice, Batch]]:
        """Return parts of so many users, which keep what they work out; nothing is copied."""
        slices = [slice(first, first + size) for first in range(0, self.loss.users, size)]
        return [(part, self.select(part)) for part in slices]

    def value(self, rho: Tensor, theta: Tensor) -> Tensor:
        """``L_n(theta_n) + R(rho, theta_n)``, ``(k,)``."""
        return self.loss.value(theta) + self.regularizer.value(rho, theta)

    def gradient(self, rho: Tensor, theta: Tensor) -> Tensor:
        """Return the gradient in theta, ``(k, d)``."""
        return self.loss.gradient(theta) - self.regularizer.grad_rho(rho, theta)

    @cached_property
    def rounding(self) -> Tensor:
        """Size of the rounding error of each gradient's sum over points, ``(k,)``."""
        weight = self.loss.weights * self.loss.scale[:, None]
        terms = (weight * norm(self.loss.features)).sum(dim=-1)
        return torch.finfo(terms.dtype).eps * terms

    def direction(self, rho: Tensor, theta: Tensor, gradient: Tensor) -> Tensor:
        """``H_n^{-1} g_n``, ``(k, d)``; not finite where the Hessian has no factor."""
        if isinstance(self.regularizer, SquaredL2):
            # The same wherever theta is, in all directions: one right-hand side instead of two.
            weight = self.regularizer.weight(gradient[..., :1])
            return self._solve(theta, weight, gradient[..., None])[..., 0]
        z = rho - theta
        r = length(z)
        weight = self.regularizer.weight(r)
        beta = self.regularizer.second(r) - weight
        if beta.is_cpu and not bool(beta.any()):
            # Everybody at rho. On a card two right-hand sides take less than a look.
            return self._solve(theta, weight, gradient[..., None])[..., 0]
        unit = z / r.clamp(min=torch.finfo(r.dtype).tiny)
        targets = torch.stack([gradient, unit], dim=-1)
        solved = self._solve(theta, weight, targets)
        along, across = solved[..., 0], solved[..., 1]
        share = (unit * along).sum(dim=-1, keepdim=True)
        bend = 1 + beta * (unit * across).sum(dim=-1, keepdim=True)
        # Positive where the Hessian is positive definite; elsewhere there is no direction.
        return along - torch.where(bend > 0, beta * share / bend, torch.nan) * across

    def _solve(self, theta: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """``(Hess L_n + w I)^{-1}`` times ``(k, d, m)``, for ``weight (k, 1)``."""
        if self.gram is None:
            hessian = self.loss.hessian(theta)
            hessian.diagonal(dim1=1, dim2=2).add_(weight)
            return _cholesky_solve(hessian, targets)
        features = self.loss.features
        # The roots keep the system symmetric, and positive definite for points without curvature.
        curvature = self.loss.loss.factors(self.loss.model.scores(theta, features))[0][..., 0]
        root = (curvature * self.loss.weights * self.loss.scale[:, None]).sqrt()[..., None]
        alpha = (weight + 2 * self.loss.nu)[..., None]
        system = (self.gram * root).mul_(root.transpose(1, 2))
        system.diagonal(dim1=1, dim2=2).add_(alpha[..., 0])
        inner = root * _cholesky_solve(system, root * (features @ targets))
        return (targets - features.transpose(1, 2) @ inner) / alpha


def _cholesky_solve(system: Tensor, targets: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(system)
    if system.is_cpu or system.shape[-1] > LARGEST_SYSTEM:
        solved = torch.cholesky_solve(targets, factor)
    else:
        # On a card that call takes memory that is not torch's, and gives it back, at every use:
        # for 100,000 systems of ten an H200 computes 1 ms, and of both triangles 0.2 ms.
        half = torch.linalg.solve_triangular(factor, targets, upper=False)
        solved = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    # Users without a factor are for the solver of single ones, which knows ridges.
    if solved.is_cpu and not bool(info.any()):
        return solved
    return torch.where((info > 0)[:, None, None], torch.nan, solved)
