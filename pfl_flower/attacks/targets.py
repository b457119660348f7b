"""The strategic user's target model theta_dagger (Section 5.1).

For images it is learned on the training set with every label moved by a shift, by 1 in the paper: 0
as 1, ..., 9 as 0 (Appendix G); for synthetic data, whose common model is known, it is the opposite
of that model, or learned on the opposite answers where the model is not linear.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pfl_flower.aggregation.server_steps import StepSizes
from pfl_flower.data.sources import Source
from pfl_flower.data.synthetic import Synthetic
from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import PointLoss
from pfl_flower.objective.models import Linear, Model
from pfl_flower.objective.modules import ModuleModel
from pfl_flower.objective.regularizers import SquaredL2
from pfl_flower.objective.two_layer import TwoLayer
from pfl_flower.solvers.optimizer_steps import StepState, adam_step
from pfl_flower.solvers.proximal import ProximalSolver
from pfl_flower.support.files import replacing
from pfl_flower.support.folders import cache_folder
from pfl_flower.support.seeding import generator

RIDGE = 0.1
"""Coefficient of ||theta||^2 in an exactly solved target: digits are separable, and without it the
optimum would be infinitely far."""
EXACT_LIMIT = 1500
"""Most parameters for which the target is solved exactly; above, it is trained with Adam. It is the
size up to which local solves are dense, see ``newton.DENSE_LIMIT``."""
EXACT_TOLERANCE = 1e-8
"""Residual of an exact target: rounding of a gradient summed over 60,000 points stays below it."""
STEPS = 300
"""Of Adam. On MNIST a linear target then answers 93.2% as it should, and 93.6% after twice as many:
every node trains its own, in half a minute, and all must end in the same bits."""
STEP_SIZES = StepSizes(first=0.02, decay=0.99, floor=0.005)
MODULE_STEP_SIZES = StepSizes(first=0.005, decay=0.99, floor=0.00125)
"""Of torch modules: cnn then answers 97.4% of MNIST as it should, 97.0% at the rates above."""
BATCH = 256
"""Points of a step where a torch module learns, drawn anew: all of MNIST's would take an hour."""


def learn_target(
    source: Source, model: Model, loss: PointLoss, *, cache_key: str, shift: int = 1
) -> Tensor:
    """Return theta_dagger ``(d,)`` for labels moved by ``shift``, the same on every node.

    Small linear models are solved to the optimum in float64; others take 300 Adam steps in float32,
    on all points or, torch modules, on 256 drawn anew, and are kept in the cache folder, under a
    name derived from ``cache_key`` and the model. An empty key keeps nothing.
    """
    if isinstance(source, Synthetic) and isinstance(model, Linear):
        return -source.common
    features, labels = source.training_set()
    if model.outputs > 1:
        relabelled = (labels + shift) % model.outputs
    else:
        relabelled = -labels if shift else labels
    of = "" if shift == 1 else f"|shift {shift}"
    return learn(features, relabelled, model, loss, cache_key=cache_key, of=of)


def learn(
    features: Tensor, labels: Tensor, model: Model, loss: PointLoss, *, cache_key: str, of: str
) -> Tensor:
    """Return a model ``(d,)`` of points, learned and kept as ``learn_target`` says.

    ``of`` tells these points from others of the same key.
    """
    if _is_exact(model):
        return _solve(features.double(), labels, model, loss)
    if not cache_key:
        return _train(features.float(), labels, model, loss)
    sizes = _step_sizes(model)
    recipe = f"{cache_key}|{model}|{STEPS}|{sizes}|{len(labels)}"
    recipe += f"|{BATCH}" if isinstance(model, ModuleModel) else ""
    # Targets that were learned when sums had another order have other last digits: those of models
    # that can also be given as plug-ins, whose targets are not kept, are learned anew.
    recipe += "" if isinstance(model, Linear | TwoLayer) else "|by whole pieces"
    recipe += of
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    return _cached(cache_folder() / "targets" / f"{digest}.npy", features, labels, model, loss)


def stays_in_cache(source: Source, model: Model, cache_key: str) -> bool:
    """Return whether the next process finds this target where ``learn_target`` has put it."""
    given = isinstance(source, Synthetic) and isinstance(model, Linear)
    return given or (bool(cache_key) and not _is_exact(model))


def _is_exact(model: Model) -> bool:
    return isinstance(model, Linear) and model.dim <= EXACT_LIMIT


def _solve(features: Tensor, labels: Tensor, model: Model, loss: PointLoss) -> Tensor:
    local = LocalLoss.build(model, loss, features[None], labels[None])
    zero = torch.zeros(model.dim, dtype=torch.float64)
    solver = ProximalSolver(local, SquaredL2(lam=RIDGE), tolerance=EXACT_TOLERANCE)
    return solver.solve(zero, zero[None]).theta[0]


def _cached(path: Path, features: Tensor, labels: Tensor, model: Model, loss: PointLoss) -> Tensor:
    try:
        kept = torch.from_numpy(np.load(path, allow_pickle=False))
        if kept.shape == (model.dim,):
            return kept
    except (OSError, ValueError):
        pass
    target = _train(features.float(), labels, model, loss)
    with replacing(path) as file:
        np.save(file, target.numpy(), allow_pickle=False)
    return target


def _train(features: Tensor, labels: Tensor, model: Model, loss: PointLoss) -> Tensor:
    local = LocalLoss.build(model, loss, features[None], labels[None], reduction="mean")
    theta = model.initial(1, generator(0, "target"), torch.float32)
    state = StepState.init(theta)
    for step in range(1, STEPS + 1):
        # Sums in an order that the data alone decide; what is drawn depends on the step alone.
        gradient = _batch(local, step).gradient(theta)
        theta, state = adam_step(theta, gradient, state, _step_sizes(model).at(step))
    return theta[0]


def _step_sizes(model: Model) -> StepSizes:
    return MODULE_STEP_SIZES if isinstance(model, ModuleModel) else STEP_SIZES


def _batch(local: LocalLoss, step: int) -> LocalLoss:
    points = local.features.shape[1]
    if not isinstance(local.model, ModuleModel) or points <= BATCH:
        return local
    drawn = torch.randint(points, (1, BATCH), generator=generator(0, "target batch", step))
    return local.minibatch(drawn, torch.tensor([points]))
