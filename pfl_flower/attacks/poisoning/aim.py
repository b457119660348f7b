"""What poisoned data must achieve, and how far given data are from it (Sections 3.1 and 5.3).

A poisoned user runs the honest code on data D_s. Under the local optimum's condition

    grad L_s(theta_spade, D_s) = grad_rho R(target, theta_spade) = g                     (aim)

its exact report at rho = target is g. If g cancels the honest sum there, (target, theta) satisfies
the first-order conditions of LOSS, which is convex: rho* = target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from torch import Tensor

from pfl_flower.attacks.equivalence import nearest_gradient
from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import PointLoss
from pfl_flower.objective.models import Linear, Model, augment
from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.objective.user_data import UserData
from pfl_flower.objective.vectors import norm

TOLERANCE = 1e-8
"""First-order residual, relative to ``1 + ||g||``, at which data count as feasible: ten times what
``cheapest_combination.CLOSE`` lets a linear programme leave over."""

FARTHEST = 1e70
"""Largest entry of theta_spade or g: squares of products of both are numbers in double."""

ROWS_AT_ONCE = 4096
"""Queries that are taken from a card at once: 134 MB of a VGG13's embeddings."""


@dataclass(frozen=True, kw_only=True)
class Aim:
    """The condition ``grad L_s(theta_spade, D_s) = g`` that poisoned data are made for.

    Parameters
    ----------
    model, loss
        The strategic user's model and loss per point; its local loss is a sum over points.
    attack_model, gradient : Tensor
        theta_spade and g, ``(d,)``. Where the target is out of reach, g belongs to the reachable
        limit (``pfl_flower.attacks.reachable``).
    nu : float
        Local regularisation.
    bias : bool
        Whether the last feature of every query is the constant 1.

    Raises
    ------
    ValueError
        If the shapes do not fit the model, or entries are not finite or beyond ``FARTHEST``.
    """

    model: Model
    loss: PointLoss
    attack_model: Tensor
    gradient: Tensor
    nu: float = 0.0
    bias: bool = False

    def __post_init__(self) -> None:
        """Refuse vectors that are not parameters of the model."""
        for name, vector in (("attack_model", self.attack_model), ("gradient", self.gradient)):
            if vector.shape != (self.model.dim,):
                raise ValueError(f"{name} {tuple(vector.shape)}: expected ({self.model.dim},)")
            largest = float(vector.abs().max())
            if not largest <= FARTHEST:
                raise ValueError(f"{name}: expected numbers up to {FARTHEST:g}, not {largest:g}")

    @classmethod
    def at(
        cls,
        regularizer: Regularizer,
        rho: Tensor,
        attack_model: Tensor,
        *,
        model: Model,
        loss: PointLoss,
        nu: float = 0.0,
        bias: bool = False,
        wanted: Tensor | None = None,
    ) -> Aim:
        """Return the aim of a model attack that holds rho: ``g = grad_rho R(rho, theta_spade)``.

        Of a model that only comes close to what was wanted (Lemma 15) take as rho its own
        equilibrium: the data then hold rho there exactly. Where theta_spade is rho itself, l2's
        kink, g is the subgradient nearest to the one ``wanted (d,)``.

        Raises
        ------
        ValueError
            If nothing is wanted there: any vector of a ball would do, and the data hold one.
        """
        if regularizer.kink > 0 and wanted is None and bool((rho == attack_model).all()):
            raise ValueError("wanted: expected a gradient, where theta_spade is at a kink")
        asked = torch.zeros_like(rho) if wanted is None else wanted
        return cls(
            model=model,
            loss=loss,
            attack_model=attack_model,
            gradient=nearest_gradient(regularizer, rho, attack_model, asked),
            nu=nu,
            bias=bias,
        )

    @property
    def demand(self) -> Tensor:
        """``2 nu theta_spade - g``, ``(c, q)``: what ``sum_x w_x (-dloss/dscore) Q^T`` must be.

        Raises
        ------
        ValueError
            If the model is not linear: there is then no such form.
        """
        if not isinstance(self.model, Linear):
            raise ValueError("model: designed data need a linear model")
        pull = 2 * self.nu * self.attack_model - self.gradient
        return pull.view(self.model.outputs, self.model.inputs)

    @property
    def theta(self) -> Tensor:
        """theta_spade as the matrix ``(c, q)`` of a linear model."""
        return self.attack_model.view(self.model.outputs, self.model.inputs)


@dataclass(frozen=True, kw_only=True)
class PoisonedData:
    """A fabricated dataset and how well it meets its aim, recomputed from the data themselves.

    Attributes
    ----------
    method : str
        What made it.
    features, labels, weights : Tensor
        Queries ``(n, q)``, the constant feature included; hard ``(n,)`` or soft ``(n, c)`` labels;
        label weights ``(n,)``.
    distinct : int
        Number of distinct queries.
    total_weight : float
        Total label weight, the attack's budget.
    residual : float
        ``||grad L_s(theta_spade, D_s) - g||``, infinite where it is no number.
    feasible : bool
        Whether the residual is within ``TOLERANCE (1 + ||g||)``.
    """

    method: str
    features: Tensor
    labels: Tensor
    weights: Tensor
    distinct: int
    total_weight: float
    residual: float
    feasible: bool

    @classmethod
    def measure(
        cls, aim: Aim, method: str, features: Tensor, labels: Tensor, weights: Tensor
    ) -> PoisonedData:
        """Return the dataset without its points of weight 0, with its residual computed."""
        kept = weights > 0
        # A user without points has no loss: the first one stays, weighing nothing.
        if not bool(kept.any()):
            kept = torch.arange(len(weights)) < 1
        if not bool(kept.all()):
            features, labels, weights = features[kept], labels[kept], weights[kept]
        residual = float(norm(local_gradient(aim, features, labels, weights)))
        residual = math.inf if math.isnan(residual) else residual
        # 1 + ||g||: of an empty pull, g = 0, no relative residual can be asked.
        scale = 1 + float(torch.linalg.vector_norm(aim.gradient))
        return cls(
            method=method,
            features=features,
            labels=labels,
            weights=weights,
            distinct=_distinct(features),
            total_weight=float(weights.sum()),
            residual=residual,
            feasible=residual <= TOLERANCE * scale,
        )

    def hard(self) -> PoisonedData:
        """Return the same loss with a row per (query, class): weights ``w y_a``, labels ``a``."""
        if self.labels.ndim == 1:
            return self
        classes = self.labels.shape[1]
        weights = (self.weights[:, None] * self.labels).reshape(-1)
        kept = weights > 0
        labels = torch.arange(classes, device=self.labels.device).repeat(len(self.features))
        features = self.features.repeat_interleave(classes, dim=0)
        return replace(self, features=features[kept], labels=labels[kept], weights=weights[kept])

    def user(self, *, soft: bool = False) -> UserData:
        """Return the strategic user's dataset, with hard labels so that it mixes with honest ones.

        Soft and hard labels have different shapes and cannot share a ``Population``; ``soft`` keeps
        soft ones, a row for each query instead of one for each of its labels.
        """
        data = self if soft else self.hard()
        return UserData(data.features, data.labels, data.weights)


def _distinct(queries: Tensor) -> int:
    """Return how many rows differ, to the bit: a query repeated by ``hard`` is the same row.

    By digests of 16 bytes, as sorting copies: a hundred thousand embeddings are 3 GB.
    """
    found: set[bytes] = set()
    for block in torch.split(queries.detach(), ROWS_AT_ONCE):
        found |= {blake2b(row.tobytes(), digest_size=16).digest() for row in block.cpu().numpy()}
    return len(found)


def local_gradient(aim: Aim, features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return ``grad L_s(theta_spade, D) - g``, ``(d,)``."""
    local = LocalLoss.build(
        aim.model, aim.loss, features[None], labels[None], weights=weights[None], nu=aim.nu
    )
    return local.gradient(aim.attack_model[None])[0] - aim.gradient


def check_queries(aim: Aim, queries: Tensor) -> None:
    """Refuse queries ``(n, q)`` that the model could not be asked.

    Raises
    ------
    ValueError
        If the shape is wrong, there is none, or the constant feature is not 1.
    """
    if queries.ndim != 2 or queries.shape[1] != aim.model.inputs or len(queries) == 0:
        raise ValueError(f"queries {tuple(queries.shape)}: expected (n > 0, {aim.model.inputs})")
    if aim.bias and not bool((queries[:, -1] == 1).all()):
        raise ValueError("queries: expected the constant 1 in the last column")


def gaussian_queries(aim: Aim, points: int, *, generator: torch.Generator) -> Tensor:
    """Return ``(points, q)`` standard normal queries, the constant feature appended if any."""
    free = aim.model.inputs - int(aim.bias)
    queries = torch.randn((points, free), generator=generator, dtype=torch.float64)
    queries = queries.to(aim.attack_model)
    return augment(queries) if aim.bias else queries


def rounded(aim: Aim, data: PoisonedData) -> PoisonedData:
    """Return the data with hard labels and weights rounded to integers, and what that costs."""
    hard = data.hard()
    weights = hard.weights.round()
    return PoisonedData.measure(aim, f"{data.method}, rounded", hard.features, hard.labels, weights)
