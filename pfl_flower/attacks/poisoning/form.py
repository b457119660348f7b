"""Whether fabricated data are points that a user of the run can learn from."""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData
from pfl_flower.attacks.poisoning.table import POISONINGS
from pfl_flower.objective.losses import Logistic, Softmax
from pfl_flower.support.errors import ConfigError


def check_form(poisoning: str, aim: Aim, data: object) -> PoisonedData:
    """Return the data, if their features, labels and weights are what the aim's loss takes.

    Raises
    ------
    ConfigError
        One line that names the poisoning, what it made, and what would be right.
    """
    POISONINGS.expect(poisoning, data, PoisonedData)
    assert isinstance(data, PoisonedData)
    fault = _fault(aim, data.features, data.labels, data.weights)
    if fault:
        raise ConfigError(f"{POISONINGS.point} = {poisoning}: expected {fault}")
    return data


def _fault(aim: Aim, features: Tensor, labels: Tensor, weights: Tensor) -> str:
    """Return what would be right, empty if all is."""
    for name, value in (("features", features), ("labels", labels), ("weights", weights)):
        if not isinstance(value, Tensor):
            return f"{name} in a tensor, and they are a {type(value).__name__}"
    count, inputs = len(labels) if labels.ndim else 0, aim.model.inputs
    if tuple(features.shape) != (count, inputs) or not count:
        shape = tuple(features.shape)
        return f"a row of {inputs} features for each label, and they are {shape} for {count}"
    if tuple(weights.shape) != (count,):
        return f"a weight for each label, and they are {tuple(weights.shape)} for {count}"
    floats = features.is_floating_point() and weights.is_floating_point()
    if not floats or not bool(features.isfinite().all() & weights.isfinite().all()):
        return "features and weights that are finite numbers in floating point"
    if bool((weights < 0).any()):
        return f"no negative weight, and there is {float(weights.min()):g}"
    if aim.bias and not bool((features[:, -1] == 1).all()):
        return "the constant 1 as the last feature"
    return _fault_of_labels(aim, labels)


def _fault_of_labels(aim: Aim, labels: Tensor) -> str:
    classes = aim.model.outputs
    if isinstance(aim.loss, Softmax):
        if labels.ndim == 2 and labels.is_floating_point():
            right = labels.shape[1] == classes and bool(
                (labels >= 0).all() & labels.isfinite().all()
            )
            return "" if right else f"soft labels (n, {classes}) that are not negative"
        whole = labels.ndim == 1 and labels.dtype == torch.int64
        if whole and bool((labels >= 0).all() & (labels < classes).all()):
            return ""
        return f"labels from 0 to {classes - 1} in int64, or soft ones (n, {classes})"
    if labels.ndim != 1:
        return f"one label for each point, and they are {tuple(labels.shape)}"
    if isinstance(aim.loss, Logistic):
        return "" if bool((labels.abs() == 1).all()) else "labels 1 and -1"
    return "" if bool(labels.isfinite().all()) else "labels that are finite numbers"
