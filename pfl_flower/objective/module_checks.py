"""What a torch module must be to serve as the users' model: looked at and tried before round 1."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from pfl_flower.objective.modules import ModuleModel
from pfl_flower.support.plugins import told

POINTS = 3
"""Of a trial; their scores are compared with those of the first alone."""
AGREEMENT = 1e-3
"""By how much scores of one point may differ, relative to the largest: algorithms differ by 1e-5 in
single precision, layers that mix points by as much as the scores are."""
NOISE = 0.1
"""Deviation of what is added to the first parameters, among which zeros would hide what mixes."""


class UnfitError(Exception):
    """What would be right, and is not."""


def check_layers(module: nn.Module) -> None:
    """Refuse layers whose work is no function of parameters and point.

    Raises
    ------
    UnfitError
        For batch norm and what else keeps statistics or draws at random while it is trained; in
        evaluation mode (``module.eval()``) such layers are what they were pretrained to be.
    """
    for name, layer in module.named_modules():
        which = f"{type(layer).__name__} (layer {name!r})" if name else type(layer).__name__
        if _keeps_statistics(layer):
            raise UnfitError(
                f"group norm or layer norm in place of {which}, whose statistics belong to a "
                "batch, not to a user; a pretrained one may stay, after module.eval()"
            )
        if _draws(layer):
            raise UnfitError(
                f"no {which}, since a user's steps are a function of its points: a rate of 0, or "
                "module.eval(), turns it off; nu regularises"
            )


def _keeps_statistics(layer: nn.Module) -> bool:
    if isinstance(layer, _BatchNorm):
        return layer.training or layer.running_mean is None
    return isinstance(layer, _InstanceNorm) and layer.training and layer.track_running_stats


def _draws(layer: nn.Module) -> bool:
    if not layer.training:
        return False
    rate = getattr(layer, "p" if isinstance(layer, _DropoutNd) else "dropout", 0.0)
    return isinstance(layer, nn.RReLU) or (isinstance(rate, int | float) and rate > 0)


def check_parameters(module: nn.Module, again: nn.Module) -> None:
    """Refuse parameters that cannot be one vector, or that another process would not start with.

    Parameters
    ----------
    module, again : Module
        Made twice from the same seed.

    Raises
    ------
    UnfitError
        If a parameter is not real and on the CPU, or the two differ.
    """
    for name, value in module.named_parameters():
        if value.device.type != "cpu" or not value.is_floating_point():
            raise UnfitError(
                f"real parameters on the CPU, from where a run moves them to its device, and "
                f"{name} is {value.dtype} on {value.device}"
            )
    first, second = (dict(one.state_dict()) for one in (module, again))
    same = first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )
    if not same:
        raise UnfitError(
            "the same parameters each time that it is made: initialise with torch's own generator, "
            "which is seeded for it"
        )


def count_activations(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Return how many numbers one point becomes in a module's layers.

    Raises
    ------
    UnfitError
        If the module does not take such a point.
    """
    found = [math.prod(shape)]

    def note(layer: nn.Module, given: object, made: object) -> None:
        if isinstance(made, Tensor):
            found.append(made.numel())

    leaves = [one for one in module.modules() if not list(one.children())]
    handles = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        sizes = ", ".join(map(str, ("n", *shape)))
        with (
            torch.no_grad(),
            _one_line(f"takes points ({sizes})"),
            torch.random.fork_rng(devices=[]),
        ):
            module(torch.zeros((1, *shape)))
    finally:
        for handle in handles:
            handle.remove()
    return sum(found)


def try_model(model: ModuleModel, dtype: torch.dtype, device: torch.device) -> None:
    """Let a model do once what a run has it do.

    Raises
    ------
    UnfitError
        If it cannot; its own exceptions are one line, with the place in its file.
    """
    draw = torch.Generator().manual_seed(0)
    raw = torch.rand((POINTS, math.prod(model.shape)), generator=draw, dtype=torch.float64)
    features, theta = raw.to(device, dtype), model.initial(1, draw, dtype).to(device)
    cards = [device] if device.type == "cuda" else []
    with _one_line("torch.func can differentiate"), torch.random.fork_rng(devices=cards):
        _try_scores(model, theta, features)
        noise = torch.randn(theta.shape, generator=draw, dtype=torch.float64)
        _try_points(model, theta + NOISE * noise.to(theta), features)
        # As several users are batched, and as a user alone is.
        for users in (2, 1):
            own = features.expand(users, -1, -1)
            model.backward(theta.repeat(users, 1), own, lambda scores, *_: scores)


def _try_scores(model: ModuleModel, theta: Tensor, features: Tensor) -> None:
    kept = model.kept(theta.dtype, theta.device)
    before = {name: value.clone() for name, value in kept.items()}
    scores, again = (model.scores(theta, features) for _ in range(2))
    if scores.shape[1:] != (POINTS, model.outputs):
        raise UnfitError(
            f"scores ({POINTS}, {model.outputs}) of {POINTS} points, and it makes "
            f"{tuple(scores.shape[1:])}"
        )
    if not bool(torch.isfinite(scores).all()):
        raise UnfitError("scores that are numbers, and those of its first parameters are not")
    for name, value in kept.items():
        if not torch.equal(value, before[name]):
            raise UnfitError(f"buffers that its forward leaves alone, and it changes {name}")
    if not torch.equal(scores, again):
        raise UnfitError("the same scores each time, and it draws at random")


def _try_points(model: ModuleModel, theta: Tensor, features: Tensor) -> None:
    scores, alone = model.scores(theta, features), model.scores(theta, features[:1])
    if float((alone - scores[:, :1]).abs().max()) > AGREEMENT * float(scores.abs().max()):
        raise UnfitError(
            "scores of a point that do not depend on the other points of its batch; group norm and "
            "layer norm, in place of batch norm, see one point"
        )


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Tell what a module raises as one line, with its file and line: it is none that ``what``."""
    try:
        yield
    except UnfitError:
        raise
    except Exception as error:
        raise UnfitError(f"a module that {what} ({told(error)})") from error
