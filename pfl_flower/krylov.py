"""Newton systems too large for a dense Hessian: conjugate gradients, preconditioned class by class.

With scores s = X theta^T a linear classifier's Hessian is ``sum_x w (diag(a) - b b^T) (x) Q Q^T``
plus a multiple of the identity. The preconditioner keeps the diagonal blocks, one ``(q, q)`` matrix
for each class, which a single-precision Cholesky factor serves; the change that all classes share,
to which a softmax is blind, has the identity's curvature alone and is treated apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.losses import LocalLoss, Softmax

BLOCK_LIMIT = 2000
"""Largest block that is factored for each class; larger ones, once, for the mean over classes."""
MEAN_LIMIT = 8192
"""Largest block that is factored at all; beyond it the preconditioner is the diagonal."""
TIRED = 60
"""Products in one solve from which a preconditioner made elsewhere is made anew."""


@dataclass
class Preconditioner:
    """``r -> M^{-1} r``, M near the Hessian at some theta.

    Attributes
    ----------
    factors : Tensor or None
        Cholesky factors of the blocks, ``(c, q, q)``, or of their mean, ``(1, q, q)``, in single
        precision.
    diagonal : Tensor
        The Hessian's diagonal, ``(d,)``, used where there are no factors.
    shared : float
        Curvature of the change that all classes share; 0 if the loss is not blind to it.
    inputs : int
        Number of features q.
    longest : int
        Most products that a solve with it has taken.
    """

    factors: Tensor | None
    diagonal: Tensor
    shared: float
    inputs: int
    longest: int = 0

    @classmethod
    def at(cls, loss: LocalLoss, theta: Tensor, weight: float) -> Preconditioner:
        """Return the preconditioner of one user's loss and ``weight I``, at ``theta (d,)``."""
        features = loss.features[0]
        first, second = loss.loss.factors(loss.model.scores(theta[None], loss.features))
        curvature = first if second is None else first - second**2
        weighted = (curvature * (loss.weights * loss.scale[:, None])[..., None])[0]
        rest = 2 * loss.nu + weight
        diagonal = (weighted.T @ features**2).reshape(-1) + rest
        classes, inputs = weighted.shape[1], features.shape[1]
        blind = isinstance(loss.loss, Softmax) and rest > 0
        factors = None
        if inputs <= MEAN_LIMIT:
            if inputs > BLOCK_LIMIT:
                classes, weighted = 1, weighted.mean(dim=1, keepdim=True)
            factors = theta.new_empty((classes, inputs, inputs), dtype=torch.float32)
            single = features.float()
            for a in range(classes):
                block = single.T @ (single * weighted[:, a, None].float())
                # What single precision cannot tell from singular.
                ridge = rest + 1e-6 * float(block.diagonal().max())
                block.diagonal().add_(ridge)
                factors[a] = torch.linalg.cholesky(block)
        return cls(factors, diagonal, rest if blind else 0.0, inputs)

    @property
    def tired(self) -> bool:
        """Whether it has served so far from where it was made that a new one is cheaper."""
        return self.longest > TIRED

    def __call__(self, residual: Tensor) -> Tensor:
        """Return ``M^{-1} residual``, ``(d,)``."""
        if self.factors is None:
            return residual / self.diagonal
        rows = residual.view(-1, self.inputs)
        mean = rows.mean(dim=0, keepdim=True) if self.shared else torch.zeros_like(rows[:1])
        # One right-hand side for each factor, or all of them for a factor that they share.
        sides = (rows - mean).float().view(len(self.factors), -1, self.inputs).mT
        solved = torch.cholesky_solve(sides, self.factors).mT.reshape(rows.shape).to(rows.dtype)
        if self.shared:
            solved = solved - solved.mean(dim=0, keepdim=True) + mean / self.shared
        return solved.reshape(-1)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    target: Tensor,
    precondition: Callable[[Tensor], Tensor],
    *,
    rtol: float,
    max_iterations: int = 500,
) -> Tensor:
    """Solve ``A x = target``, A positive definite, by preconditioned conjugate gradients.

    Stops at ``||target - A x|| <= rtol ||target||`` or after ``max_iterations`` products.
    """
    solution = torch.zeros_like(target)
    if not bool(target.any()):
        return solution
    residual = target.clone()
    preconditioned = precondition(residual)
    direction = preconditioned
    energy = residual @ preconditioned
    limit = rtol * torch.linalg.vector_norm(target)
    for _ in range(max_iterations):
        image = product(direction)
        length = energy / (direction @ image)
        solution = solution + length * direction
        residual = residual - length * image
        if torch.linalg.vector_norm(residual) <= limit:
            break
        preconditioned = precondition(residual)
        energy, previous = residual @ preconditioned, energy
        direction = preconditioned + (energy / previous) * direction
    return solution
