"""The exact solve of least squares with squared l2: one linear system for each user."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.regularizers import SquaredL2
from pfl_flower.support.threads import each


class NormalEquations:
    """``(X^T W X + 2 (nu + lam) I) theta = X^T W A + 2 lam rho`` of a batch of users.

    A Cholesky factor of the matrix is made once. It has none where rounding has taken the last of
    its positive eigenvalues, and a poor one close to there: the matrix has the square of the
    condition of ``X``. Of users whom it fails ``orthogonally`` makes the same factor without making
    the matrix.

    Parameters
    ----------
    loss : LocalLoss
        Least squares of the users, one score a point.
    regularizer : SquaredL2
        The coupling.

    Attributes
    ----------
    careful : Tensor
        Whose factor is an orthogonal one, ``(k,)``.
    """

    def __init__(self, loss: LocalLoss, regularizer: SquaredL2) -> None:
        self.loss, self.regularizer = loss, regularizer
        users, dim = loss.users, loss.model.dim
        zero = loss.features.new_zeros((users, dim))
        if zero.is_cpu:
            tasks = [(slice(user, user + 1),) for user in range(users)]
            made = each(lambda user: self._factor(loss.select(user), zero[user]), tasks)
            self.factor = torch.cat(made)
        else:
            self.factor = self._factor(loss, zero)
        self.careful = torch.zeros(users, dtype=torch.bool, device=zero.device)

    def _factor(self, loss: LocalLoss, zero: Tensor) -> Tensor:
        """Return Cholesky factors ``(k, d, d)``; on the CPU of one user, whose bits are its own."""
        hessian = loss.hessian(zero)
        hessian.diagonal(dim1=1, dim2=2).add_(2 * self.regularizer.lam)
        # What is no factor makes no solution, and that is seen in its residual.
        return torch.linalg.cholesky_ex(hessian).L

    def select(self, index: Tensor) -> NormalEquations:
        """Return the equations of the users at ``index``, with their factors."""
        chosen = copy.copy(self)
        chosen.loss = self.loss.select(index)
        chosen.factor, chosen.careful = self.factor[index], self.careful[index]
        return chosen

    def solve(self, rho: Tensor) -> Tensor:
        """Return the solutions ``(k, d)``, refined once; not finite where there is no factor."""
        theta = self.factor.new_zeros(self.factor.shape[:2])
        # The first step leaves the factor's rounding, eps times the condition number of it; the
        # second works on the residual of the data themselves and takes that away.
        for _ in range(2):
            gradient = self.loss.gradient(theta) - self.regularizer.grad_rho(rho, theta)
            theta = theta - self._solved(gradient)
        return theta

    def _solved(self, gradient: Tensor) -> Tensor:
        """Return the factors' solutions ``(k, d)``."""
        if not gradient.is_cpu:
            return torch.cholesky_solve(gradient[..., None], self.factor)[..., 0]
        pairs = zip(gradient, self.factor, strict=True)
        found = each(lambda own, factor: torch.cholesky_solve(own[:, None], factor), list(pairs))
        return torch.stack(found)[..., 0]

    def orthogonally(self, users: Tensor) -> None:
        """Make the factors of ``users`` anew, ``L^T = R`` of the points' own ``Q R``.

        With ``B = [W^{1/2} X; (2 nu + 2 lam)^{1/2} I]`` the matrix is ``B^T B = R^T R``; R is exact
        for a B that is off by rounding, and with the refinement of ``solve`` (corrected seminormal
        equations: Bjorck, *Stability analysis of the method of seminormal equations*, 1987) the
        solution is as good as the data's last digits allow.
        """
        for user in users.tolist():
            self._careful_factor(user)
        self.careful[users] = True

    def _careful_factor(self, user: int) -> None:
        loss = self.loss.select(slice(user, user + 1))
        root = (2 * loss.nu + 2 * self.regularizer.lam) ** 0.5
        ridge = root * torch.eye(loss.model.dim).to(loss.features)
        rows = loss.features * loss.point_weights.sqrt()[..., None]
        stacked = torch.cat([rows, ridge.expand(len(rows), -1, -1)], dim=1)
        # Reflections lose small rows among large ones unless the large ones come first (Cox and
        # Higham, *Stability of Householder QR factorization for weighted least squares*, 1998).
        order = stacked.abs().amax(dim=2).argsort(dim=1, descending=True, stable=True)
        stacked = stacked.gather(1, order[..., None].expand_as(stacked))
        if bool(stacked.isfinite().all()):
            self.factor[user] = torch.linalg.qr(stacked, mode="r").R[0].mT
