"""Points whose gradient is the one that is wished for, of any model: labels, then features.

Bouaziz, El-Mhamdi, Usunier, *Inverting gradient attacks makes powerful data poisoning*, 2024 (arXiv
2410.21453): what a Byzantine user would report, a data set can be made to report.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pfl_flower.objective.losses import LeastSquares, Logistic, PointLoss, Softmax
from pfl_flower.objective.models import Model, augment
from pfl_flower.objective.user_data import UserData
from pfl_flower.objective.vectors import norm

CLOSE = 1e-6
"""Relative residual at which a search has found what it looked for."""
LOOKS = 10
"""Steps of labels after which their residual is looked at, and the penalty set anew."""
MOVES, RATE = 20, 0.03
"""Of Adam on the features in a sweep, in units of [0, 1]: 20 steps cross half of it."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Fabricated points.

    Attributes
    ----------
    pixels : Tensor
        Features in [0, 1], ``(n, p)``, without the constant one.
    answers : Tensor
        ``(n, c)``: of classes a distribution, of logistic labels the share of 1, of regression the
        number.
    """

    pixels: Tensor
    answers: Tensor


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What a search found.

    Attributes
    ----------
    points : Points
        The best of the search.
    gradient : Tensor
        ``grad L(theta)`` on them, ``(d,)``.
    residual : float
        ``||grad L(theta) - g||``.
    """

    points: Points
    gradient: Tensor
    residual: float


@dataclass(frozen=True, kw_only=True)
class Inverse:
    """The search for points D with ``grad L(theta, D) = g``.

        minimise  ||grad L(theta, D) - g||^2   over D = {(x_i, y_i)}, x_i in [0, 1]^p,
        L(theta, D) = nu ||theta||^2 + w sum_i loss(theta, x_i, y_i)

    With J_i the Jacobian in theta of the scores of x_i, and p_i what the model answers itself
    (probabilities; of regression the score),

        grad L(theta, D) = 2 nu theta + w sum_i J_i^T (p_i - y_i)

    is linear in the labels, whatever the model. So labels on the simplex (in [0, 1]; any number)
    are a convex problem, which the alternating direction method of multipliers solves, badly
    conditioned as it is (Boyd et al. 2011), and a model that is sure of its answers, whose gradient
    vanishes at them, does not stop it. Features follow by Adam's steps, clamped to [0, 1];
    then labels again. A sweep never ends with a larger residual than it began with.

    What no labels can say: sums over classes of the last layer's bias, say, or gradients longer
    than n points have. The residual tells.

    Parameters
    ----------
    model, loss
        Of the user.
    nu, weight : float
        Local regularisation, and w of each point.
    bias : bool
        Whether the last feature is the constant 1.
    steps, sweeps : int
        Steps of labels in a sweep, and sweeps; features move between two of them.
    """

    model: Model
    loss: PointLoss
    nu: float = 0.0
    weight: float = 1.0
    bias: bool = False
    steps: int = 100
    sweeps: int = 3

    def start(self, points: int, theta: Tensor, draw: torch.Generator, own: Tensor) -> Points:
        """Return points with the labels that the model itself gives: they say nothing.

        They are the first of ``own (m, q)``, where these are in [0, 1], and random ones.
        """
        free = self.model.inputs - int(self.bias)
        real = own[:points, :free].to(theta)
        real = real if bool(((real >= 0) & (real <= 1)).all()) else real[:0]
        drawn = torch.rand((points - len(real), free), generator=draw, dtype=torch.float64)
        pixels = torch.cat([real, drawn.to(theta)])
        return self.silent(theta, pixels)

    def silent(self, theta: Tensor, pixels: Tensor) -> Points:
        """Return points whose labels the model itself gives, at theta."""
        answers = self._expected(self._scores(theta, pixels)).detach()
        return Points(pixels=pixels, answers=answers)

    def data(self, points: Points) -> UserData:
        """Return the points as a user holds them, hard logistic labels each with its weight."""
        features = self._features(points.pixels)
        whole = features.new_full((len(features),), self.weight)
        if isinstance(self.loss, Softmax):
            return UserData(features, points.answers, whole)
        answers = points.answers[:, 0]
        if isinstance(self.loss, LeastSquares):
            return UserData(features, answers, whole)
        labels = torch.cat([torch.ones_like(answers), -torch.ones_like(answers)])
        weights = self.weight * torch.cat([answers, 1 - answers])
        return UserData(torch.cat([features, features]), labels, weights)

    def gradient(self, theta: Tensor, points: Points) -> Tensor:
        """Return ``grad L(theta)``, ``(d,)``, of which points can be differentiated."""
        at = theta.detach().requires_grad_()
        scores = self._scores(at, points.pixels)
        slope = self.weight * (self._expected(scores) - points.answers)
        (pulled,) = torch.autograd.grad(scores, at, slope, create_graph=True)
        found: Tensor = pulled + 2 * self.nu * at.detach()
        return found

    def judged(self, theta: Tensor, wished: Tensor, points: Points) -> Matched:
        """Return points with their gradient; a residual that is no number is infinite."""
        gradient = self.gradient(theta, points).detach()
        apart = norm(gradient - wished).nan_to_num(nan=torch.inf)
        return Matched(points=points, gradient=gradient, residual=float(apart))

    def search(self, theta: Tensor, wished: Tensor, start: Points) -> Matched:
        """Return the best that comes of a start: no worse than it, or than the points silent."""
        close = CLOSE * float(norm(wished))
        with torch.enable_grad():
            # What points said at another theta may be far from all that is wished for at this one.
            begun = (start, self.silent(theta, start.pixels))
            tried = [self.judged(theta, wished, one) for one in begun]
            best = min(tried, key=lambda one: one.residual)
            for sweep in range(self.sweeps):
                for improve in (self._moved, self._labelled) if sweep else (self._labelled,):
                    if best.residual <= close:
                        return best
                    found = self.judged(theta, wished, improve(theta, wished, best.points))
                    best = found if found.residual < best.residual else best
        return best

    def _labelled(self, theta: Tensor, wished: Tensor, points: Points) -> Points:
        """Return the points with the labels that bring their gradient nearest to ``wished``."""
        rows = self.weight * self._jacobian(theta, points.pixels)
        silent = self._expected(self._scores(theta, points.pixels)).detach()
        # sum_i w J_i^T y_i is to be this.
        aim = rows.mT @ silent.flatten() - wished + 2 * self.nu * theta
        normal = _Normal.of(rows)
        pull = rows @ aim
        allowed, dual = points.answers, torch.zeros_like(points.answers)
        stiff = normal.middle
        best, lowest = points.answers, float("inf")
        for step in range(1, self.steps + 1):
            free = normal.solve(pull + stiff * (allowed - dual).flatten(), stiff)
            after = self._allowed(free.view_as(dual) + dual)
            apart, moved = norm(free - after.flatten()), stiff * norm((after - allowed).flatten())
            dual = dual + free.view_as(dual) - after
            allowed = after
            if step % LOOKS == 0 or step == self.steps:
                left = float(norm(rows.mT @ allowed.flatten() - aim))
                best, lowest = (allowed, left) if left < lowest else (best, lowest)
                # The penalty that lets both residuals fall alike (Boyd et al. 2011, 3.4.1).
                ratio = float(apart * stiff / moved.clamp(min=torch.finfo(moved.dtype).tiny))
                factor = min(max(ratio**0.5, 0.1), 10.0)
                stiff, dual = stiff * factor, dual / factor
        return replace(points, answers=best)

    def _jacobian(self, theta: Tensor, pixels: Tensor) -> Tensor:
        """Return all J_i, ``(n c, d)``: one model for each point, so that none adds to another."""
        many = theta.detach().expand(len(pixels), -1).contiguous().requires_grad_()
        scores = self.model.scores(many, self._features(pixels)[:, None])[:, 0]
        rows = [
            torch.autograd.grad(scores[:, one].sum(), many, retain_graph=True)[0]
            for one in range(scores.shape[1])
        ]
        return torch.stack(rows, dim=1).flatten(0, 1)

    def _moved(self, theta: Tensor, wished: Tensor, points: Points) -> Points:
        """Return the points with the best features of Adam's steps in [0, 1]."""
        tiny = torch.finfo(wished.dtype).tiny
        scale = norm(wished).clamp(min=tiny)
        pixels = points.pixels.detach().clone().requires_grad_()
        # eps far below any slope: how long a step is does not hang on how much points can say.
        optimizer = torch.optim.Adam([pixels], lr=RATE, betas=(0.9, 0.99), eps=tiny**0.5)
        best, lowest = points.pixels, float("inf")
        for _ in range(MOVES):
            apart = (self.gradient(theta, replace(points, pixels=pixels)) - wished) / scale
            value = apart @ apart
            if float(value.detach()) < lowest:
                best, lowest = pixels.detach().clone(), float(value.detach())
            (pixels.grad,) = torch.autograd.grad(value, pixels)
            optimizer.step()
            with torch.no_grad():
                pixels.clamp_(0, 1)
        return replace(points, pixels=best)

    def _scores(self, theta: Tensor, pixels: Tensor) -> Tensor:
        return self.model.scores(theta[None], self._features(pixels)[None])[0]

    def _features(self, pixels: Tensor) -> Tensor:
        return augment(pixels) if self.bias else pixels

    def _expected(self, scores: Tensor) -> Tensor:
        """Return the labels of which ``loss`` has no slope, ``(n, c)``: what the model answers."""
        if isinstance(self.loss, Softmax):
            return torch.softmax(scores, dim=1)
        return torch.sigmoid(scores) if isinstance(self.loss, Logistic) else scores

    def _allowed(self, answers: Tensor) -> Tensor:
        """Return the labels nearest to ``answers (n, c)``."""
        if isinstance(self.loss, Softmax):
            return on_simplex(answers)
        return answers.clamp(0, 1) if isinstance(self.loss, Logistic) else answers


def on_simplex(rows: Tensor) -> Tensor:
    """Return the distribution nearest to each row, ``(n, c)`` (Duchi et al. 2008).

    >>> on_simplex(torch.tensor([[0.5, 0.9], [3.0, 0.0]]))
    tensor([[0.3000, 0.7000],
            [1.0000, 0.0000]])
    """
    ordered = rows.sort(dim=1, descending=True).values
    over = ordered.cumsum(dim=1) - 1
    number = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    kept = (ordered - over / number > 0).sum(dim=1, keepdim=True)
    return (rows - over.gather(1, kept - 1) / kept).clamp(min=0)


@dataclass(frozen=True)
class _Normal:
    """``(B B^T + s)^{-1}`` for every s, from the eigenvectors of the smaller of both products."""

    rows: Tensor
    values: Tensor
    vectors: Tensor
    short: bool

    @classmethod
    def of(cls, rows: Tensor) -> _Normal:
        """Decompose B, ``(m, d)``."""
        short = rows.shape[0] <= rows.shape[1]
        values, vectors = torch.linalg.eigh(rows @ rows.mT if short else rows.mT @ rows)
        return cls(rows, values.clamp(min=0), vectors, short)

    @property
    def middle(self) -> float:
        """A penalty to begin with."""
        return max(1e-3 * float(self.values[-1]), torch.finfo(self.values.dtype).tiny)

    def solve(self, right: Tensor, shift: float) -> Tensor:
        """Return ``(B B^T + shift)^{-1} right``, ``(m,)``."""
        if self.short:
            return self.vectors @ ((self.vectors.mT @ right) / (self.values + shift))
        inner = self.vectors.mT @ (self.rows.mT @ right)
        return (right - self.rows @ (self.vectors @ (inner / (self.values + shift)))) / shift
