"""The users of one node as batched tensors: what honest users compute from a broadcast."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pfl_flower.objective.local_loss import LocalLoss, Reduction
from pfl_flower.objective.losses import PointLoss
from pfl_flower.objective.models import Model
from pfl_flower.objective.regularizers import Regularizer, SquaredL2
from pfl_flower.objective.user_data import Stack, UserData, stack
from pfl_flower.solvers.proximal import DEFAULT_TOLERANCE, ProximalSolver, Solution


@dataclass(frozen=True)
class _Bucket:
    """Users of equal padded size: their rows in the node's order, true sizes, loss."""

    rows: Tensor
    sizes: Tensor
    loss: LocalLoss

    @classmethod
    def of(cls, users: Stack, build: Callable[..., LocalLoss]) -> _Bucket:
        data = users.data
        return cls(users.rows, users.sizes, build(data.features, data.labels, weights=data.weights))


_Origin = tuple["Population", list[tuple[int, Tensor]]]
"""A population, and of some of its buckets the number and the users taken."""


class Population:
    """``k`` users with datasets of any sizes, who share a model, a loss and a regulariser.

    Parameters
    ----------
    users : sequence of UserData or of Stack
        The datasets, in the order of the rows of every ``(k, d)`` tensor here; or stacked already.
    model, loss, regularizer, nu, reduction
        The problem (Equations 1 and 3).
    dtype, device
        Where and in which precision to compute.
    compress
        Whether to leave out zeros where most features are zero; it pays from some twenty gradients.
    tolerance, max_iterations
        Contract of the exact solves, see ``ProximalSolver``.

    Raises
    ------
    ValueError
        If there is no user or a user has no point.
    """

    def __init__(
        self,
        users: Sequence[UserData] | Sequence[Stack],
        *,
        model: Model,
        loss: PointLoss,
        regularizer: Regularizer,
        nu: float = 0.0,
        reduction: Reduction = "sum",
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
        tolerance: float = DEFAULT_TOLERANCE,
        max_iterations: int = 100,
        compress: bool = True,
    ) -> None:
        stacks = [one for one in users if isinstance(one, Stack)]
        if not stacks:
            datasets = [one for one in users if isinstance(one, UserData)]
            if not datasets or any(len(user.features) == 0 for user in datasets):
                raise ValueError("users: expected at least one user, each with at least one point")
            stacks = stack(datasets, dtype)
        self.model, self.regularizer, self.nu = model, regularizer, nu
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.device, self.dtype = torch.device(device), dtype
        build = partial(LocalLoss.build, model, loss, nu=nu, reduction=reduction, compress=compress)
        self._fill([_Bucket.of(one.to(self.device), build) for one in stacks], None)

    def _fill(self, buckets: list[_Bucket], origin: _Origin | None) -> None:
        """Take the users that these buckets hold, and whence to take what is known of them."""
        rows = torch.cat([bucket.rows for bucket in buckets])
        self.size, self._buckets, self._origin = len(rows), buckets, origin
        self._order = torch.argsort(rows)
        self._made: list[ProximalSolver] | None = None
        self._lonely: Population | None = None

    def select(self, rows: Tensor) -> Population:
        """Return the users at ``rows``, ascending, with what their solvers have worked out."""
        place = torch.full((self.size,), -1, device=self.device)
        place[rows.to(self.device)] = torch.arange(len(rows), device=self.device)
        buckets, parts = [], []
        for number, bucket in enumerate(self._buckets):
            new = place[bucket.rows]
            index = (new >= 0).nonzero()[:, 0]
            if len(index):
                local = bucket.loss.select(index)
                buckets.append(_Bucket(new[index], bucket.sizes[index], local))
                parts.append((number, index))
        chosen = copy.copy(self)
        chosen._fill(buckets, (self, parts))
        return chosen

    @property
    def _solvers(self) -> list[ProximalSolver]:
        """One for each bucket, made when the first solve asks: models of others have none."""
        # Factors and Gram matrices of the whole are taken from there, made there if they must be.
        if self._made is None and self._origin is not None:
            whole, parts = self._origin
            self._made = [whole._solvers[number].select(index) for number, index in parts]
        elif self._made is None:
            self._made = [
                ProximalSolver(
                    bucket.loss,
                    self.regularizer,
                    tolerance=self.tolerance,
                    max_iterations=self.max_iterations,
                )
                for bucket in self._buckets
            ]
        return self._made

    def alone(self) -> Population:
        """Return the same users without a coupling: ``solve`` about 0 gives ``argmin L_n``.

        ``nu ||theta||^2`` stands in R's place, which takes nu > 0. What its solvers work out is
        kept as long as this population is.
        """
        if self._lonely is None:
            whole = copy.copy(self)
            whole.regularizer, whole.nu = SquaredL2(lam=self.nu), 0.0
            buckets = [replace(one, loss=replace(one.loss, nu=0.0)) for one in self._buckets]
            whole._fill(buckets, None)
            self._lonely = whole
        return self._lonely

    def value(self, theta: Tensor) -> Tensor:
        """``L_n(theta_n)``, shape ``(k,)``."""
        return self._gather(lambda bucket: bucket.loss.value(self._part(theta, bucket)))

    def gradient(self, theta: Tensor) -> Tensor:
        """``grad L_n(theta_n)``, shape ``(k, d)``."""
        return self._gather(lambda bucket: bucket.loss.gradient(self._part(theta, bucket)))

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Both, ``(k,)`` and ``(k, d)``, at little more than the gradient's cost."""
        parts = [
            bucket.loss.value_and_gradient(self._part(theta, bucket)) for bucket in self._buckets
        ]
        values, gradients = zip(*parts, strict=True)
        return self._together(values), self._together(gradients)

    def minibatch_gradient(self, theta: Tensor, draws: Tensor | Sequence[Tensor]) -> Tensor:
        """Estimate ``grad L_n(theta_n)`` from uniform draws in [0, 1), one ``(b,)`` a user."""
        uniform = draws if isinstance(draws, Tensor) else torch.stack(tuple(draws))
        uniform = uniform.to(self.device)

        def estimate(bucket: _Bucket) -> Tensor:
            # A draw in [0, 1) times a size stays below the size when it is rounded, too.
            index = (self._part(uniform, bucket) * bucket.sizes[:, None]).long()
            return bucket.loss.minibatch(index, bucket.sizes).gradient(self._part(theta, bucket))

        return self._gather(estimate)

    def hessian(self, row: int, theta: Tensor) -> Tensor:
        """``Hess L_n(theta)`` of one user, ``(d, d)``, for ``theta (d,)``; linear models only.

        Raises
        ------
        IndexError
            If there is no such row.
        """
        for bucket in self._buckets:
            found = (bucket.rows == row).nonzero()
            if len(found):
                index = int(found[0, 0])
                return bucket.loss.select(slice(index, index + 1)).hessian(theta[None])[0]
        raise IndexError(f"row {row}: expected 0 .. {self.size - 1}")

    def second_moments(self, theta: Tensor, *, diagonal: bool = False) -> Tensor:
        """Mean diagonal block of each ``Hess L_n(theta_n)`` but for ``2 nu I``, ``(k, q, q)``.

        Its diagonal alone, ``(k, q)``, if asked.
        """

        def moments(bucket: _Bucket) -> Tensor:
            theta_part = self._part(theta, bucket)
            return bucket.loss.second_moments(theta_part, diagonal=diagonal)

        return self._gather(moments)

    def smoothness(self) -> Tensor:
        """Upper bound on the curvature of each ``L_n``, shape ``(k,)``."""
        return self._gather(lambda bucket: bucket.loss.smoothness())

    def solve(self, rho: Tensor, start: Tensor) -> Solution:
        """Exact local models ``argmin L_n(theta) + R(rho, theta)`` from ``start (k, d)``."""
        parts = [
            solver.solve(rho, self._part(start, bucket))
            for bucket, solver in zip(self._buckets, self._solvers, strict=True)
        ]
        return Solution(
            theta=self._together([part.theta for part in parts]),
            residual=self._together([part.residual for part in parts]),
            iterations=self._together([part.iterations for part in parts]),
            converged=self._together([part.converged for part in parts]),
        )

    def report(self, rho: Tensor, theta: Tensor) -> Tensor:
        """Return the honest reports ``g_n = grad_rho R(rho, theta_n)``, shape ``(k, d)``.

        For l2 at ``theta_n = rho`` every vector of the ball is a subgradient; the honest one is
        the projection of ``grad L_n(rho)``: at an exact local optimum that is the gradient of the
        user's envelope.
        """
        reports = self.regularizer.grad_rho(rho, theta)
        if self.regularizer.kink == 0:
            return reports
        # A solve that ends at the kink returns rho's own bits.
        at_kink = (theta == rho).all(dim=-1)
        if bool(at_kink.any()):
            opinion = self.regularizer.project(self.gradient(theta))
            reports = torch.where(at_kink[:, None], opinion, reports)
        return reports

    def _part(self, values: Tensor, bucket: _Bucket) -> Tensor:
        """Return the bucket's rows of ``(k, ...)``; a lone bucket has all, in their order."""
        return values if len(self._buckets) == 1 else values[bucket.rows]

    def _together(self, parts: Sequence[Tensor]) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        # Buckets come by size, rows by user: sums over users have one order on every node.
        return torch.cat(list(parts))[self._order]

    def _gather(self, compute: Callable[[_Bucket], Tensor]) -> Tensor:
        return self._together([compute(bucket) for bucket in self._buckets])
