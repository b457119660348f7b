"""The paper's poisoning of linear classifiers (Section 5.3, Appendix I): ask where labels tie.

V is the affine set of queries to which theta_spade gives all labels the same probability. With
``y_a = theta_a - theta_0`` and ``c_a = b_0 - b_a``, b the biases, it is ``{X : y_a^T X = c_a}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData, check_queries
from pfl_flower.attacks.poisoning.recipe import Recipe
from pfl_flower.objective.losses import Logistic, Softmax
from pfl_flower.objective.models import augment

DEPENDENT = 1e-10
"""Relative norm below which a y_a counts as a combination of those before it: of one that is, two
passes leave 1e-16, and normals made of that would be noise."""
SWEEPS = 500
"""Of Dykstra's projections. Of random points in boxes of 4 to 64 features half are on V to rounding
after 50 at most; the slowest, where V cuts a corner, are off by 3e-9 after 100."""

Box = tuple[float, float]


@dataclass(frozen=True)
class Indifference:
    """V as hyperplanes with orthogonal normals (Equations 174 to 176).

    Attributes
    ----------
    normals : Tensor
        ``z_a``, ``(m, p)``, orthogonal, p the number of features without the constant.
    offsets : Tensor
        ``c'_a``, ``(m,)``: V is ``{X : z_a^T X = c'_a for all a}``.
    """

    normals: Tensor
    offsets: Tensor

    def project(self, points: Tensor) -> Tensor:
        """Project points ``(n, p)`` on V, one hyperplane after another (Equation 178).

        As the normals are orthogonal the hyperplanes do not undo one another, and the repeated
        projection is the orthogonal projection on V.
        """
        points = points.clone()
        for normal, offset in zip(self.normals, self.offsets, strict=True):
            excess = (points @ normal - offset) / (normal @ normal)
            points.addr_(excess, normal, alpha=-1)
        return points

    def project_in_box(self, points: Tensor, box: Box, *, sweeps: int = SWEEPS) -> Tensor:
        """Project on V within the box by Dykstra's alternating projections, ending in the box.

        (Boyle, Dykstra, *A method for finding projections onto the intersection of convex sets in
        Hilbert spaces*, 1986.) Where V misses the box, the points end in the box near V.
        """
        # V needs no correction of its own: it is affine. The box comes last, as it must be kept.
        correction = torch.zeros_like(points)
        for _ in range(sweeps):
            inside = (self.project(points) + correction).clamp(*box)
            correction = self.project(points) + correction - inside
            points = inside
        return points

    def noise(self, points: int, scale: float, *, generator: torch.Generator) -> Tensor:
        """Return ``(points, p)`` normal noise of standard deviation ``scale`` inside span(y_a).

        Noise outside the span would not change a label's probability.
        """
        shape = (points, len(self.normals))
        draws = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.normals)
        unit = self.normals / torch.linalg.vector_norm(self.normals, dim=1, keepdim=True)
        return scale * draws @ unit


def indifference_subspace(aim: Aim) -> Indifference:
    """Return V by the Gram-Schmidt algorithm (Equation 174).

    Raises
    ------
    ValueError
        If no query makes all labels equally probable, or if the loss is a regression's.
    """
    if not isinstance(aim.loss, Softmax | Logistic):
        raise ValueError("loss: indifference is about the labels of a classifier")
    theta = aim.theta if isinstance(aim.loss, Logistic) else aim.theta[1:] - aim.theta[0]
    biases = theta[:, -1] if aim.bias else theta.new_zeros(len(theta))
    rows = theta[:, :-1] if aim.bias else theta
    normals: list[Tensor] = []
    offsets: list[Tensor] = []
    for row, bias in zip(rows, biases, strict=True):
        normal, offset = row, -bias
        # Twice is enough: a second pass removes what rounding left of the earlier directions.
        for _ in range(2):
            for other, constant in zip(normals, offsets, strict=True):
                share = (normal @ other) / (other @ other)
                normal, offset = normal - share * other, offset - share * constant
        if torch.linalg.vector_norm(normal) > DEPENDENT * torch.linalg.vector_norm(row):
            normals.append(normal)
            offsets.append(offset)
        # 0 = c': the tie of this label with the first is implied, or with c' != 0 impossible.
        elif float(offset.abs()) > DEPENDENT * float(1 + bias.abs()):
            raise ValueError("attack_model: no query makes all labels equally probable")
    if not normals:
        return Indifference(rows.new_zeros((0, rows.shape[1])), biases.new_zeros(0))
    return Indifference(torch.stack(normals), torch.stack(offsets))


def indifference(
    aim: Aim,
    queries: Tensor,
    *,
    generator: torch.Generator,
    noise: float = 0.01,
    labels: Literal["soft", "drawn"] = "soft",
    draws: int = 1,
    weight: float = 1.0,
    box: Box | None = None,
    sweeps: int = SWEEPS,
) -> PoisonedData:
    """Return queries near V with theta_spade's own labels (Equation 179).

        Q = P_V(X) + xi,   labels p(Q),   each of weight alpha

    Soft labels make theta_spade a stationary point of the points' loss, not of L_s: with
    ``nu = 0`` the residual is ``||g||`` whatever alpha, and what holds theta_s near theta_spade is
    curvature, ``alpha p (1 - p)`` per point, which inside span(y_a) comes from the noise alone.

    Parameters
    ----------
    aim : Aim
        Linear classifier, softmax or logistic.
    queries : Tensor
        Random queries ``(n, q)`` to project, the constant feature included.
    generator : torch.Generator
        Source of the noise, then of the labels.
    noise : float
        Standard deviation of xi in each direction of span(y_a).
    labels : {"soft", "drawn"}
        p(Q) itself, or ``draws`` labels a query drawn from p(Q).
    draws : int
        Number N of labels a query.
    weight : float
        alpha, the number of times each label counts.
    box : tuple of float, optional
        Interval of every feature but the constant; V may miss it.
    sweeps : int
        Of Dykstra's projections into the box.

    Raises
    ------
    ValueError
        If the queries do not fit, V is empty, or ``draws`` or ``weight`` is not positive.
    """
    check_queries(aim, queries)
    if draws < 1 or not weight > 0:
        raise ValueError(f"draws = {draws}, weight = {weight}: expected positive numbers")
    subspace = indifference_subspace(aim)
    points = queries[:, :-1] if aim.bias else queries
    drawn = partial(subspace.noise, len(points), noise, generator=generator)
    if box is None:
        # In place, and drawn only here: of a hundred thousand embeddings a copy is 3 GB.
        points = subspace.project(points).add_(drawn())
    else:
        points = (subspace.project_in_box(points, box, sweeps=sweeps) + drawn()).clamp(*box)
    features = augment(points) if aim.bias else points
    count, answers = _answers(aim, features, labels, draws, generator)
    repeats = answers.shape[1]
    return PoisonedData.measure(
        aim,
        f"indifference, {labels} labels",
        features if repeats == 1 else features.repeat_interleave(repeats, dim=0),
        answers.flatten(0, 1),
        weight * count.flatten(),
    )


def _answers(
    aim: Aim, features: Tensor, labels: str, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return counts ``(n, r)`` and labels ``(n, r)`` or ``(n, r, c)`` of the r answers a query."""
    scores = aim.model.scores(aim.attack_model[None], features[None])[0]
    if isinstance(aim.loss, Logistic):
        positive = torch.sigmoid(scores)
        probabilities = torch.cat([1 - positive, positive], dim=1)
        hard = torch.tensor([-1, 1], device=scores.device)
    else:
        probabilities = torch.softmax(scores, dim=-1)
        hard = torch.arange(scores.shape[1], device=scores.device)
    every = hard.expand(len(features), -1)
    if labels == "drawn":
        drawn = torch.multinomial(
            probabilities.cpu(), draws, replacement=True, generator=generator
        ).to(scores.device)
        counts = torch.zeros_like(probabilities)
        return counts.scatter_add_(1, drawn, torch.ones_like(drawn).to(counts)), every
    if isinstance(aim.loss, Logistic):
        return probabilities, every
    return torch.ones_like(probabilities[:, :1]), probabilities[:, None, :]


def by_indifference(aim: Aim, recipe: Recipe, *, sweeps: int = SWEEPS) -> PoisonedData:
    """Return what the keys of a run ask for; ``sweeps`` are Dykstra's."""
    settings = recipe.settings
    return indifference(
        aim,
        recipe.queries(aim),
        generator=recipe.generator,
        noise=settings.poisoning_noise,
        labels=settings.poisoning_labels,
        draws=settings.poisoning_draws,
        weight=settings.poisoning_weight,
        box=recipe.box,
        sweeps=sweeps,
    )
