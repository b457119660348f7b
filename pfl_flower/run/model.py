"""The model that a run's keys name: one of ours, or a torch module that is wrapped."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from pfl_flower.data.sources import Source
from pfl_flower.objective.models import Model
from pfl_flower.objective.module_checks import (
    UnfitError,
    check_layers,
    check_parameters,
    count_activations,
    try_model,
)
from pfl_flower.objective.modules import ModuleModel
from pfl_flower.objective.table import MODELS, MODULE_KEYS
from pfl_flower.run.config import RunConfig
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.folders import own_path
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.seeding import seed_of
from pfl_flower.support.tensor_files import load_tensors

EQUILIBRIUM_LIMIT = 1500
"""Most parameters of an exact equilibrium, which takes dense Hessians."""


def build_model(config: RunConfig, source: Source, device: torch.device) -> Model:
    """Return the model of a configuration, a module tried once.

    Raises
    ------
    ConfigError
        One line: what cannot be imported, made or used, with its own error, and what would be
        right.
    """
    name, factory = config.model, MODELS.load(config.model)
    units = {"hidden": config.hidden} if "hidden" in MODELS.row(name).reads else {}
    inputs = source.inputs if takes_inputs(factory) else source.shape
    make = partial(MODELS.make, name, config.model_options, inputs, source.outputs, **units)
    seed = seed_of(config.seed, "module")
    made = seeded(make, seed)
    if isinstance(made, nn.Module):
        try:
            return _wrapped(config, source, device, make)
        except UnfitError as error:
            raise ConfigError(f"model = {name}: expected {error}") from error
    if not isinstance(made, Model) or type(made.inputs) is not int:
        kinds = f"a torch.nn.Module, or a {Model.__module__}.Model of the number of inputs"
        raise ConfigError(f"model = {name}: expected {kinds}, and it made a {type(made).__name__}")
    if config.equilibrium and made.dim > EQUILIBRIUM_LIMIT:
        raise ConfigError(
            f"equilibrium = true: expected at most {EQUILIBRIUM_LIMIT} parameters, "
            f"and {config.dataset} has {made.dim}"
        )
    for key in MODULE_KEYS:
        if value := config.flat()[key]:
            raise ConfigError(f"{key} = {value}: expected nothing, for a model without modules")
    return made


def takes_inputs(factory: Callable[..., Any]) -> bool:
    """Return whether a factory is told the number of features, the constant one included.

    That is so of ``Model`` classes and of functions whose first parameter is called ``inputs``;
    all others are told the shape of a point.

    >>> from pfl_flower.objective.models import Linear
    >>> takes_inputs(Linear), takes_inputs(nn.Flatten), takes_inputs(lambda shape, outputs: None)
    (True, False, False)
    """
    if isinstance(factory, type):
        return issubclass(factory, Model)
    try:
        return next(iter(inspect.signature(factory).parameters), "") == "inputs"
    except (TypeError, ValueError):
        return False


def seeded(make: Callable[[], Any], seed: int) -> Any:
    """Return what a factory makes with torch's own generator seeded, and then as it was before.

    >>> before = torch.get_rng_state()
    >>> one, other = (seeded(lambda: torch.rand(1), 3) for _ in range(2))
    >>> bool(one == other), bool((torch.get_rng_state() == before).all())
    (True, True)
    """
    with torch.random.fork_rng(devices=[]):
        # Of the processor alone: torch.manual_seed would seed the cards as well, for good.
        torch.default_generator.manual_seed(seed)
        return make()


def _wrapped(
    config: RunConfig, source: Source, device: torch.device, make: Callable[[], nn.Module]
) -> ModuleModel:
    weights = _weights(config.model_weights)

    def begun(seed: int) -> nn.Module:
        return seeded(partial(_begun, make, source.shape, config.model_weights, weights), seed)

    seed = seed_of(config.seed, "module")
    module = begun(seed)
    check_layers(module)
    check_parameters(module, begun(seed))
    model = ModuleModel(
        inputs=source.inputs,
        outputs=source.outputs,
        shape=source.shape,
        make=begun,
        module=module,
        frozen=_frozen(config.model_frozen, module),
        activations=count_activations(module, source.shape),
    )
    try_model(model, getattr(torch, config.dtype), device)
    return model


def _begun(
    make: Callable[[], nn.Module], shape: tuple[int, ...], path: str, weights: dict[str, Tensor]
) -> nn.Module:
    """Return a module at its start: initialised, or with the weights of a file."""
    module = make()
    if any(isinstance(value, UninitializedParameter) for value in module.parameters()):
        module(torch.zeros((1, *shape)))
    if weights:
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise ConfigError(
                f"model-weights = {path}: expected the state of this model ({one_line(error)})"
            ) from None
    return module


def weights_version(config: RunConfig) -> tuple[int, ...]:
    """Return what tells a changed file of ``model-weights``: it is looked at, not read."""
    if not config.model_weights:
        return ()
    try:
        seen = own_path("model-weights", config.model_weights).stat()
    except OSError:
        return ()
    return seen.st_mtime_ns, seen.st_size


def _weights(path: str) -> dict[str, Tensor]:
    """Return what ``torch.save(module.state_dict(), path)`` wrote; nothing without a path."""
    if not path:
        return {}
    place = own_path("model-weights", path)
    found = load_tensors(place)
    if found is None or not all(isinstance(value, Tensor) for value in found.values()):
        what = "tensors by name, as torch.save(module.state_dict(), path) writes them"
        there = f"a file of {what}" if place.is_file() else "a file that is there"
        raise ConfigError(f"model-weights = {path}: expected {there}")
    # The file is mapped into memory, and may be written anew.
    return {name: value.clone() for name, value in found.items()}


def _frozen(text: str, module: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that stay as they are: named, or made so by the module.

    Raises
    ------
    ConfigError
        If a name is no parameter's and no layer's, or nothing is left to learn.
    """
    named = dict(module.named_parameters())
    chosen = {name for name, value in named.items() if not value.requires_grad}
    for part in filter(None, (one.strip() for one in text.split(","))):
        same = {name for name in named if name == part or name.startswith(f"{part}.")}
        if not same:
            raise ConfigError(f"model-frozen = {text}: expected names among {', '.join(named)}")
        chosen |= same
    if len(chosen) == len(named):
        left = "parameters that are not frozen, and it has none"
        raise ConfigError(f"model-frozen = {text}: expected fewer") if text else UnfitError(left)
    return frozenset(chosen)
