"""The problem that a run configuration states: model, loss, regulariser, data, device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from pfl_flower.attacks.targets import learn_target
from pfl_flower.data.catalogue import load_source
from pfl_flower.data.consistency import check_draw
from pfl_flower.data.own.places import versioned
from pfl_flower.data.sources import Source
from pfl_flower.data.spec import DataSpec
from pfl_flower.data.table import DATASETS
from pfl_flower.data.users import shared_out
from pfl_flower.objective.losses import LOSSES, PointLoss
from pfl_flower.objective.models import Model
from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.objective.shared_points import SharedPoints
from pfl_flower.objective.table import MODELS, REGULARIZERS
from pfl_flower.objective.user_data import Stack, UserData, padded_size
from pfl_flower.run.config import RunConfig
from pfl_flower.run.key_rules import check_loss, check_shifts
from pfl_flower.run.memory import Where, check_memory
from pfl_flower.run.model import build_model, weights_version
from pfl_flower.run.rest_limits import check_rest
from pfl_flower.solvers.population import Population
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.memo import Memo, remembered
from pfl_flower.support.seeding import generator, user_rows


def choose_device(name: str) -> torch.device:
    """Return the device of ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    ConfigError
        If CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device = cuda: expected a CUDA device, and torch sees none")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


@dataclass(frozen=True)
class Problem:
    """What honest users, strategic users and the server agree on; worked out once in a process."""

    config: RunConfig
    source: Source
    model: Model
    loss: PointLoss
    regularizer: Regularizer
    dtype: torch.dtype
    device: torch.device
    memo: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)

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

    @cached_property
    def initial(self) -> Tensor:
        """rho_0 = theta_0, ``(d,)``."""
        draw = generator(self.config.seed, "initial")
        return self.model.initial(1, draw, self.dtype)[0].to(self.device)

    @remembered
    def population(self, users: tuple[int, ...]) -> Population:
        """Return the honest users of these ids; their data stay on the device across rounds."""
        return self.draw(users)

    def draw(self, users: tuple[int, ...], *, compress: bool = True) -> Population:
        """Return honest users with data drawn anew."""
        by_size, weight = defaultdict(list), self._weight
        for row, user in enumerate(users):
            by_size[self.size(user)].append(row)
        parts: dict[int, list[tuple[Sequence[int], UserData]]] = defaultdict(list)
        for size, rows in by_size.items():
            chosen = users if len(rows) == len(users) else [users[row] for row in rows]
            data = self.source.draw_many(chosen, size, self.config.seed)
            weights = torch.full((len(rows), size), weight, dtype=torch.float64)
            parts[padded_size(size)].append((rows, replace(data, weights=weights)))
        stacks = [Stack.join(group, self.dtype) for _, group in sorted(parts.items())]
        return self.population_of(stacks, compress=compress)

    def datasets(self, users: tuple[int, ...]) -> list[UserData]:
        """Return what these users hold."""
        data = [self.source.draw(user, self.size(user), self.config.seed) for user in users]
        return [
            replace(one, weights=torch.full((len(one.labels),), self._weight, dtype=torch.float64))
            for one in data
        ]

    @cached_property
    def _asked(self) -> tuple[int, ...]:
        return self.config.points_asked()

    def size(self, user: int) -> int:
        """Return how many points a user trains on; under draws ids past the last as the last."""
        held = self.source.size(user)
        return self._asked[min(user, len(self._asked) - 1)] if held is None else held

    @cached_property
    def points(self) -> tuple[int, ...]:
        """How many points each user trains on, in the order of their ids."""
        return tuple(self.size(user) for user in range(self.config.users))

    @cached_property
    def _weight(self) -> float:
        """What each point counts for: 1, or one over the mean number of points per user."""
        points = self.points
        return len(points) / sum(points) if self.config.reduction == "scaled-sum" else 1.0

    def population_of(
        self, users: Sequence[UserData] | Sequence[Stack], *, compress: bool = True
    ) -> Population:
        """Return users with these datasets, who share the run's model, loss and regulariser."""
        return Population(
            users,
            model=self.model,
            loss=self.loss,
            regularizer=self.regularizer,
            nu=self.config.nu,
            reduction="mean" if self.config.reduction == "mean" else "sum",
            dtype=self.dtype,
            device=self.device,
            tolerance=self.config.solver_tolerance,
            max_iterations=self.config.solver_iterations,
            compress=compress,
        )

    def local_start(self, users: tuple[int, ...], centres: Tensor | None = None) -> Tensor:
        """Return the local models before the first round, ``(k, d)``.

        They are ``centres (k, d)``, rho_0 when absent, plus normal noise of deviation
        ``initialization-noise`` (Appendix I.3).
        """
        start = self.initial.repeat(len(users), 1) if centres is None else centres.clone()
        scale = self.config.initialization_noise
        if scale > 0:
            row = torch.empty(self.model.dim, dtype=torch.float64)
            noise = user_rows(
                lambda draw, _: row.normal_(generator=draw),
                [row],
                users,
                lambda user: (self.config.seed, "local start", user),
            )[0]
            start += scale * noise.to(start)
        return start

    @property
    def target(self) -> Tensor:
        """theta_dagger of the first strategic user, ``(d,)``."""
        return self.targets[self.config.shifts()[0]]

    @cached_property
    def targets(self) -> dict[int, Tensor]:
        """theta_dagger ``(d,)`` by what it adds to a class; several where users compete."""
        return {shift: self._learn(shift) for shift in dict.fromkeys(self.config.shifts())}

    @cached_property
    def honest_model(self) -> Tensor:
        """A classifier ``(d,)`` learned as the target is, on the labels as they are."""
        return self._learn(0)

    def _learn(self, shift: int) -> Tensor:
        key = self._target_key()
        target = learn_target(self.source, self.model, self.loss, cache_key=key, shift=shift)
        return target.to(self.device, self.dtype)

    @cached_property
    def in_double(self) -> Problem:
        """The same problem in float64, in which attacks and equilibria are worked out."""
        return self if self.dtype == torch.float64 else replace(self, dtype=torch.float64)

    @cached_property
    def test_set(self) -> SharedPoints:
        """Test features and labels, where the run computes."""
        features, labels = self.source.test_set()
        return SharedPoints(features.to(self.device, self.dtype), labels.to(self.device))

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


def build_problem(config: RunConfig) -> Problem:
    """Return the problem of a configuration, built once per process and state of its files.

    Raises
    ------
    ConfigError
        If a plug-in cannot be imported, or the device, the user's points or the equilibrium cannot
        be had.
    DataError
        If the data cannot be had.
    """
    return _build(config, versioned(data_spec(config)), weights_version(config))


def data_spec(config: RunConfig) -> DataSpec:
    """Return which data a configuration asks for."""
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
        config.holdout,
        config.columns,
        config.classes,
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
    check_draw(config.dataset, source, source.size(0) or asked[0], config.seed)
    device = choose_device(config.device)
    model = build_model(config, source, device)
    check_shifts(config, model.outputs)
    regularizer = REGULARIZERS.make(config.regularizer, config.regularizer_options, lam=config.lam)
    REGULARIZERS.expect(config.regularizer, regularizer, Regularizer)
    check_rest(config, regularizer)
    return Problem(
        config=config,
        source=source,
        model=model,
        loss=LOSSES[source.loss](),
        regularizer=regularizer,
        dtype=getattr(torch, config.dtype),
        device=device,
    )
