"""The problem that a run configuration states: model, loss, regulariser, data, device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from pfl_flower.attacks.backdoor import Backdoor
from pfl_flower.attacks.targets import learn, learn_target, stays_in_cache
from pfl_flower.data.catalogue import load_source
from pfl_flower.data.consistency import check_draw
from pfl_flower.data.own.places import versioned
from pfl_flower.data.spec import DataSpec
from pfl_flower.data.table import DATASETS, PARTITIONS
from pfl_flower.data.users import shared_out
from pfl_flower.objective.losses import LOSSES
from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.objective.shared_points import SharedPoints
from pfl_flower.objective.table import MODELS, REGULARIZERS
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.config import RunConfig
from pfl_flower.run.key_rules import check_loss, check_shifts
from pfl_flower.run.memory import Where, check_memory, check_shared
from pfl_flower.run.model import build_model, weights_version
from pfl_flower.run.rest_limits import check_rest
from pfl_flower.run.user_sets import UserSets
from pfl_flower.support.errors import ConfigError, DeviceError
from pfl_flower.support.seeding import generator


def choose_device(name: str) -> torch.device:
    """Return the device of ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    DeviceError
        If CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise DeviceError.no_card()
    return torch.device("cuda" if name != "cpu" and available else "cpu")


@dataclass(frozen=True)
class Problem(UserSets):
    """What honest users, strategic users and the server agree on; worked out once in a process."""

    def check_memory(self, where: Where) -> None:
        """Refuse the run where this machine cannot hold the server, or the nodes of all as well.

        Raises
        ------
        ConfigError
            If it cannot: the key that is too large, and what would fit.
        """
        model = self.model
        known = {"inputs": model.inputs, "outputs": model.outputs, "dim": model.dim}
        check_memory(self.config, **known, where=where)
        if where == "all" and PARTITIONS.row(self.config.partition).shared and self.points:
            check_shared(self.config, self.points[0] * model.inputs)

    @property
    def target(self) -> Tensor:
        """theta_dagger of the first strategic user, ``(d,)``."""
        return self.targets[self.config.shifts()[0]]

    @cached_property
    def targets(self) -> dict[int, Tensor]:
        """theta_dagger ``(d,)`` by what it adds to a class; several where users compete.

        Where the run's attack has a trigger it is a model learned as the others are, on the labels
        as they are but for a share of points with the trigger.
        """
        if self.backdoor is not None:
            return {self.config.shifts()[0]: self._learn_backdoor(self.backdoor)}
        return {shift: self._learn(shift) for shift in dict.fromkeys(self.config.shifts())}

    def dear_targets(self) -> dict[int, Tensor]:
        """Return targets that were learned in this process and that the next must learn anew."""
        key = self._target_key()
        kept = stays_in_cache(self.source, self.model, key)
        return {} if kept else dict(vars(self).get("targets", {}))

    @property
    def has_targets(self) -> bool:
        """Whether the targets are known already."""
        return "targets" in vars(self)

    def take_targets(self, learned: Mapping[int, Tensor]) -> None:
        """Take the ``dear_targets`` of an earlier process for one's own, unless there are some."""
        if set(learned) == set(self.config.shifts()):
            placed = {one: value.to(self.device, self.dtype) for one, value in learned.items()}
            vars(self).setdefault("targets", placed)

    @cached_property
    def backdoor(self) -> Backdoor | None:
        """The trigger that the run's attack is about, if it is about one."""
        return Backdoor.of(self.config.attack, self.config.attack_options, self.source)

    @cached_property
    def honest_model(self) -> Tensor:
        """A classifier ``(d,)`` learned as the target is, on the labels as they are."""
        return self._learn(0)

    def _learn(self, shift: int) -> Tensor:
        key = self._target_key()
        target = learn_target(self.source, self.model, self.loss, cache_key=key, shift=shift)
        return target.to(self.device, self.dtype)

    def _learn_backdoor(self, backdoor: Backdoor) -> Tensor:
        points = UserData(*self.source.training_set())
        points = backdoor.poisoned(points, generator(0, "backdoored model"))
        target = learn(
            points.features,
            points.labels,
            self.model,
            self.loss,
            cache_key=self._target_key(),
            of=f"|{backdoor}",
        )
        return target.to(self.device, self.dtype)

    @cached_property
    def test_set(self) -> SharedPoints:
        """Test features and labels, where the run computes; there may be none."""
        features, labels = self.source.test_set()
        return SharedPoints(features.to(self.device, self.dtype), labels.to(self.device))

    @cached_property
    def triggered_tests(self) -> SharedPoints | None:
        """Test points that are not of the trigger's class, with it, and the label it leads to.

        None without a trigger, or without such points.
        """
        if self.backdoor is None:
            return None
        features, labels = self.backdoor.triggered(self.test_set.features, self.test_set.labels)
        return SharedPoints(features, labels) if len(labels) else None

    def relabelled(self, labels: Tensor, shift: int | None = None) -> Tensor:
        """Return what an attacker wants answered: the class moved, or the opposite.

        The class moves by ``shift``, the first attacker's when absent.
        """
        if self.model.outputs > 1:
            moved = self.config.shifts()[0] if shift is None else shift
            return (labels + moved) % self.model.outputs
        return -labels

    def _target_key(self) -> str:
        """Return what a learned target depends on; nothing where one's own code may change it."""
        config = self.config
        foreign = DATASETS.row(config.dataset) is DATASETS.own and not self.source.key
        if foreign or MODELS.row(config.model) is MODELS.own:
            return ""
        noise = f"{config.label_noise}-{config.seed if config.label_noise else 0}"
        files = f"-{self.source.key}" if self.source.key else ""
        return f"{config.dataset}-{noise}{files}"


def build_problem(config: RunConfig, *, on_node: bool = False) -> Problem:
    """Return the problem of a configuration, built once per process and state of its files.

    Parameters
    ----------
    config : RunConfig
        The run's, or a node's of it.
    on_node : bool
        Whether a node asks, where users' points are.

    Raises
    ------
    ConfigError
        If a plug-in cannot be imported, or the device, the user's points or the equilibrium cannot
        be had.
    DataError
        If the data cannot be had.
    """
    spec = versioned(data_spec(config, away=config.away and not on_node))
    return _build(config, spec, weights_version(config))


def data_spec(config: RunConfig, *, away: bool = False) -> DataSpec:
    """Return which data a configuration asks for; ``away`` where this machine has none of them."""
    sizes = config.sizes()
    return DataSpec(
        config.dataset,
        config.data_dir,
        config.label_noise,
        config.features,
        config.seed,
        config.embedding_weights,
        config.dataset_options,
        config.label_column,
        config.user_column,
        config.task,
        config.standardise,
        config.held_out(),
        math.prod(sizes) if sizes else 0,
        config.classes,
        sizes if len(sizes) > 1 else (),
        config.test_data,
        away,
    )


@lru_cache(maxsize=2)
def _build(config: RunConfig, spec: DataSpec, weights: tuple[int, ...]) -> Problem:
    stored = load_source(spec)
    check_loss(config, stored.loss)
    check_memory(config, inputs=stored.inputs, outputs=stored.outputs)
    source = shared_out(stored, config)
    asked = config.points_asked()
    if source is stored and stored.most_points is not None and max(asked) > stored.most_points:
        raise ConfigError(
            f"points-per-user = {config.points_per_user or asked[0]}: expected <= "
            f"{stored.most_points}"
        )
    if source.at_hand:
        check_draw(config.dataset, source, source.size(0) or asked[0], config.seed)
    device = choose_device(config.device)
    model = build_model(config, source, device)
    check_shifts(config, model.outputs)
    regularizer = REGULARIZERS.make(config.regularizer, config.regularizer_options, lam=config.lam)
    REGULARIZERS.expect(config.regularizer, regularizer, Regularizer)
    check_rest(config, regularizer)
    problem = Problem(
        config=config,
        source=source,
        model=model,
        loss=LOSSES[source.loss](),
        regularizer=regularizer,
        dtype=getattr(torch, config.dtype),
        device=device,
    )
    # Whether a trigger fits the images is told by the data.
    _ = problem.backdoor
    return problem
