"""The run configuration: every key with its unit, default and meaning, validated first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, field_validator, model_validator

from pfl_flower.aggregation import AGGREGATIONS
from pfl_flower.keys import Keys, kebab
from pfl_flower.regularizers import REGULARIZERS
from pfl_flower.rules import rules

Scalar = bool | int | float | str

ATTACK_NAMES = (
    "cga",
    "model",
    "data",
    "label-flip",
    "sign-flip",
    "gaussian",
    "little-is-enough",
    "inner-product",
    "min-max",
)
POISONING_NAMES = ("auto", "single-point", "sampling", "indifference", "matching", "repeated")
DATASET = re.compile(
    r"digits|mnist|fashion-mnist|synthetic-(linear|logistic)|cifar10(-embeddings)?"
    r"|imagefolder(-embeddings)?:.+"
)
SYNTHETIC_LOSSES = {"synthetic-linear": "least-squares", "synthetic-logistic": "logistic"}
PLUGIN = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


class ConfigError(ValueError):
    """A configuration that cannot be run: one line with the key, the value and what is right."""


@lru_cache(maxsize=64)
def _user_ids(listed: str, users: int) -> frozenset[int]:
    """Return the ids that a list such as ``3,7-9`` names; clients ask in every round."""
    text = listed.replace(" ", "")
    if text in ("", "none"):
        return frozenset()
    if text == "all":
        return frozenset(range(users))
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise ValueError(f"strategic-users = {text}: expected ids such as 3,7-9, all, or none")
    chosen: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        chosen.update(range(int(first), int(last or first) + 1))
    if max(chosen, default=0) >= users:
        raise ValueError(f"strategic-users = {text}: expected ids 0 to {users - 1}")
    return frozenset(chosen)


class RunConfig(Keys):
    """One run of personalised federated learning, as Flower's run config carries it."""

    @field_validator("points_per_user", "strategic_users", "target_shift", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        """Accept a bare number, which is how Flower's command line reads ``strategic-users=3``."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("server_lr", mode="before")
    @classmethod
    def _number_in_text(cls, value: object) -> object:
        if isinstance(value, str) and re.fullmatch(r"[0-9.eE+-]+", value):
            return float(value)
        return value

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, value: str) -> str:
        if not DATASET.fullmatch(value):
            raise ValueError(f"expected {cls.model_fields['dataset'].description}")
        return value

    @field_validator("name")
    @classmethod
    def _one_folder(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError("expected letters, digits, '.', '_' and '-' (it names a folder)")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.points(), self.strategic(), self.shifts()
        _known("regularizer", self.regularizer, tuple(REGULARIZERS))
        _known("aggregation", self.aggregation, tuple(AGGREGATIONS))
        _known("attack", self.attack, ATTACK_NAMES)
        _known("poisoning", self.poisoning, POISONING_NAMES)
        for key, wrong, right in rules(self):
            if wrong:
                raise ValueError(f"{key} = {self.flat()[key]}: expected {right}")
        return self

    @property
    def synthetic(self) -> bool:
        """Whether the data are made, by models that are known."""
        return self.dataset in SYNTHETIC_LOSSES

    @property
    def embedded(self) -> bool:
        """Whether images are seen through a network's last layer but one."""
        return self.dataset.split(":")[0].endswith("-embeddings")

    @property
    def simultaneous(self) -> bool:
        """Whether users report from the model before its update (the paper's experiments)."""
        return self.update_order == "simultaneous"

    @property
    def inverts_adam(self) -> bool:
        """Whether CGA is asked to infer gradients that Adam's step does not reveal."""
        attacked = self.attack == "cga" and bool(self.strategic())
        return attacked and self.estimator == "inferred" and self.server_optimizer == "adam"

    @property
    def loss(self) -> str:
        """The loss that the dataset's labels are made for."""
        return SYNTHETIC_LOSSES.get(self.dataset, "softmax")

    def points(self) -> tuple[int, ...]:
        """Return the number of points of each user, in the order of their ids."""
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", self.points_per_user):
            raise ValueError(
                f"points-per-user = {self.points_per_user}: expected sizes such as 60000,10"
            )
        return _sizes(self.points_per_user, self.users)

    def sample_size(self) -> int:
        """Return the number of users asked in a round, at least one."""
        return max(1, round(self.participation * self.users))

    def sample_scale(self) -> float:
        """Return what the sum of a round's reports is multiplied by."""
        return self.users / self.sample_size() if self.participation_rescale else 1.0

    def strategic(self) -> frozenset[int]:
        """Return the ids of the users that the run makes strategic."""
        return _user_ids(self.strategic_users, self.users)

    def shifts(self) -> tuple[int, ...]:
        """Return what each strategic user's target adds to a class, in the order of their ids."""
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", self.target_shift):
            raise ValueError(f"target-shift = {self.target_shift}: expected shifts such as 1,2")
        given = [int(shift) for shift in self.target_shift.split(",")]
        count = max(1, len(self.strategic()))
        return tuple(given[:count] + given[-1:] * (count - len(given)))

    def shift(self, user: int) -> int:
        """Return the shift of a strategic user's target; the first for one the run knows not."""
        chosen = sorted(self.strategic())
        return self.shifts()[chosen.index(user) if user in chosen else 0]

    def allies(self, user: int) -> int:
        """Return how many strategic users share this one's target, itself included."""
        same = [other for other in self.strategic() if self.shift(other) == self.shift(user)]
        return max(1, len(same))

    def tolerance(self) -> int:
        """Return f, the number of strategic users that the aggregation is meant to withstand."""
        return self.aggregation_tolerance or max(1, len(self.strategic()))

    def folder(self) -> Path:
        """Return the absolute folder of the run's results."""
        base = Path(self.output_dir).expanduser() if self.output_dir else Path.home() / "pfl-flower"
        return base.absolute() / self.name

    def flat(self) -> dict[str, Scalar]:
        """Return all keys and values as Flower's run config spells them."""
        return self.model_dump(by_alias=True)


@lru_cache(maxsize=8)
def _sizes(text: str, users: int) -> tuple[int, ...]:
    given = [int(size) for size in text.split(",")][:users]
    return tuple(given + given[-1:] * (users - len(given)))


def _known(key: str, value: str, names: tuple[str, ...]) -> None:
    if value not in names and not PLUGIN.match(value):
        raise ValueError(f"{key} = {value}: expected {', '.join(names)} or package.module:Name")


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """Return the validated configuration of keys spelled as in Flower's run config.

    Raises
    ------
    ConfigError
        One line for the first fault: an unknown key, an ill-typed value, an impossible combination.
    """
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_one_line(error, values)) from None


def _one_line(error: ValidationError, values: Mapping[str, Any]) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["ctx"]["error"])
    key = kebab(str(first["loc"][0]))
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(kebab(name) for name in RunConfig.model_fields))
        return f"{key} = {values.get(key)!r}: unknown key; the keys are {known}"
    if key == "server-lr":
        return f"{key} = {values.get(key)!r}: expected auto or a positive number"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key} = {values.get(key)!r}: expected {message.removeprefix('expected ')}"
