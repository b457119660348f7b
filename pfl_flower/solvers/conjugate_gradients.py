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

from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import Softmax
from pfl_flower.objective.vectors import finite

BLOCK_LIMIT = 2000
"""Largest block that is factored for each class: 160 MB for ten classes in single precision.

In their place, of more features and no more points than this, the points' own systems, and else one
factor for the mean over classes.
"""
MEAN_LIMIT = 8192
"""Largest block that is factored at all, 270 MB; beyond it the preconditioner is the diagonal."""
TIRED = 60
"""Products in one solve from which a preconditioner made elsewhere is made anew.

A new one takes as long as some thirty products (ten classes, 300 features, 2,000 points) and leaves
about ten: more than this is lost in the next solve already.
"""
SINGLE_RIDGE = 1e-6
"""Ridge of a factor in single precision, relative to its largest entry: eight units of rounding.

What single precision cannot tell from singular, a sum over points rounds to below 0.
"""
MOST_PRODUCTS = 500
"""Products after which a solve ends where it is: still a direction of descent for a line search."""


@dataclass
class Preconditioner:
    """``r -> M^{-1} r``, M near the Hessian at some theta.

    Attributes
    ----------
    blocks : callable or None
        From rows ``(c, q)``, one for each class, to the inverse blocks times them.
    diagonal : Tensor
        The Hessian's diagonal, ``(d,)``, used where there are no blocks.
    shared : float
        Curvature of the change that all classes share; 0 if the loss is not blind to it.
    inputs : int
        Number of features q.
    longest : int
        Most products that a solve with it has taken.
    """

    blocks: Callable[[Tensor], Tensor] | None
    diagonal: Tensor
    shared: float
    inputs: int
    longest: int = 0

    @classmethod
    def at(cls, loss: LocalLoss, theta: Tensor, weight: float) -> Preconditioner:
        """Return the preconditioner of one user's loss and ``weight I``, at ``theta (d,)``."""
        features = loss.features[0]
        curvature = loss.loss.curvatures(loss.model.scores(theta[None], loss.features))
        weighted = (curvature * (loss.weights * loss.scale[:, None])[..., None])[0]
        rest = 2 * loss.nu + weight
        diagonal = (weighted.T @ features**2).reshape(-1) + rest
        points, inputs = features.shape
        blocks: Callable[[Tensor], Tensor] | None = None
        if inputs <= BLOCK_LIMIT:
            blocks = _inverse_blocks(features, weighted, rest)
        elif points <= BLOCK_LIMIT and rest > 0:
            blocks = _inverse_from_points(features, weighted, rest)
        elif inputs <= MEAN_LIMIT:
            blocks = _inverse_blocks(features, weighted.mean(dim=1, keepdim=True), rest)
        # A diagonal of what is far too large or small to be multiplied preconditions nothing.
        useful = (diagonal > 0) & diagonal.isfinite()
        diagonal = torch.where(useful, diagonal, 1.0)
        # A softmax's second derivative times a vector of equal entries is 0.
        blind = isinstance(loss.loss, Softmax) and rest > 0
        return cls(blocks, diagonal, rest if blind else 0.0, inputs)

    @property
    def tired(self) -> bool:
        """Whether it has served so far from where it was made that a new one is cheaper."""
        return self.longest > TIRED

    def __call__(self, residual: Tensor) -> Tensor:
        """Return ``M^{-1} residual``, ``(d,)``."""
        if self.blocks is None:
            return residual / self.diagonal
        rows = residual.view(-1, self.inputs)
        mean = rows.mean(dim=0, keepdim=True) if self.shared else torch.zeros_like(rows[:1])
        solved = self.blocks(rows - mean)
        if self.shared:
            # Along what all classes share H is (2 nu + w) I, of which the blocks know nothing.
            solved = solved - solved.mean(dim=0, keepdim=True) + mean / self.shared
        return solved.reshape(-1)


def _inverse_blocks(
    features: Tensor, weighted: Tensor, rest: float
) -> Callable[[Tensor], Tensor] | None:
    """Return ``(X^T D_a X + rest I)^{-1}`` on rows, for the columns a of ``weighted (n, c or 1)``.

    In single precision, which halves what a product reads; one factor may serve all rows. None
    where that has no factor: beyond 1e19 its squares are infinite.
    """
    classes, inputs = weighted.shape[1], features.shape[1]
    factors = features.new_empty((classes, inputs, inputs), dtype=torch.float32)
    single = features.float()
    for a in range(classes):
        block = single.T @ (single * weighted[:, a, None].float())
        block.diagonal().add_(rest + SINGLE_RIDGE * float(block.diagonal().max()))
        factors[a], failed = torch.linalg.cholesky_ex(block)
        if int(failed) or not bool(finite(factors[a].diagonal())):
            return None

    def solve(rows: Tensor) -> Tensor:
        sides = rows.float().view(classes, -1, inputs).mT
        return torch.cholesky_solve(sides, factors).mT.reshape(rows.shape).to(rows.dtype)

    return solve


def _inverse_from_points(
    features: Tensor, weighted: Tensor, rest: float
) -> Callable[[Tensor], Tensor] | None:
    """Return the same inverse by systems of the points' size: fewer points than features.

    ``(X^T D X + r I)^{-1} = (I - X^T S K^{-1} S X) / r`` with ``S = D^{1/2}`` and
    ``K = r I + S X X^T S``.
    """
    # Double precision throughout: the difference is divided by r, which may be tiny.
    roots = weighted.sqrt().T
    systems = (features @ features.T) * roots[:, :, None] * roots[:, None, :]
    systems.diagonal(dim1=1, dim2=2).add_(rest)
    factors, failed = torch.linalg.cholesky_ex(systems)
    if bool(failed.any()) or not bool(finite(factors.diagonal(dim1=1, dim2=2)).all()):
        return None

    def solve(rows: Tensor) -> Tensor:
        sides = (rows @ features.T) * roots
        inner = torch.cholesky_solve(sides[..., None], factors)[..., 0]
        return (rows - (inner * roots) @ features) / rest

    return solve


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    target: Tensor,
    precondition: Callable[[Tensor], Tensor],
    *,
    rtol: float,
    max_iterations: int = MOST_PRODUCTS,
) -> Tensor:
    """Solve ``A x = target``, A positive definite, by preconditioned conjugate gradients.

    Stops at ``||target - A x|| <= rtol ||target||``, after ``max_iterations`` products, or where
    rounding leaves A no curvature along a direction; if that is the first, x is the direction.
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
        # The residual is updated, not recomputed: a product less, and rtol is far above rounding.
        image = product(direction)
        bend = direction @ image
        if not bool((bend > 0) & bend.isfinite()):
            return solution if bool(solution.any()) else direction
        length = energy / bend
        solution = solution + length * direction
        residual = residual - length * image
        if torch.linalg.vector_norm(residual) <= limit:
            break
        preconditioned = precondition(residual)
        energy, previous = residual @ preconditioned, energy
        direction = preconditioned + (energy / previous) * direction
    return solution
