"""The run configuration: every key with its unit, default and meaning, validated first."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Self, cast

from pydantic import ValidationError, ValidationInfo, field_validator, model_validator

from pfl_flower.run.key_rules import refusals
from pfl_flower.run.keys import kebab
from pfl_flower.run.memory import check_memory
from pfl_flower.run.settings import SHIFTS, SIZES, USERS, Settings
from pfl_flower.run.tables import TABLES, chosen
from pfl_flower.support.errors import ConfigError, KeyFault
from pfl_flower.support.folders import own_path
from pfl_flower.support.plugins import given

LISTS = {"points_per_user": SIZES, "strategic_users": USERS, "target_shift": SHIFTS}
EITHER = {
    "holdout": "auto, or a number from 0 to less than 1",
    "columns": "a whole number of at least 0, or channels, height and width such as 3x32x32",
    "test-share": "auto, or a number from 0 to less than 1",
    "server-lr": "auto or a positive number",
    "local-lr-floor": "a number of at least 0, or empty",
    "aggregation-tolerance": "a whole number of at least 0, or empty",
    "clipping-radius": "a number of at least 0, or empty",
    "attack-strength": "a number, or empty",
}
"""What is right for keys that take a number or a word."""
POINTS = tuple(table.point for table in TABLES)
OPTIONS = tuple(f"{point}_options" for point in POINTS)


class RunConfig(Settings):
    """One run of personalised federated learning, as Flower's run config carries it."""

    @field_validator(*LISTS, mode="before")
    @classmethod
    def _number_as_text(cls, value: object, about: ValidationInfo) -> object:
        """Accept a bare number, which is how Flower's command line reads ``strategic-users=3``."""
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise ValueError(f"expected {LISTS[str(about.field_name)]}")
        return value

    @field_validator("server_lr", "test_share", "holdout", mode="before")
    @classmethod
    def _number_in_text(cls, value: object) -> object:
        if isinstance(value, str) and re.fullmatch(r"[0-9.eE+-]+", value):
            return float(value)
        return value

    @field_validator(*POINTS, mode="before")
    @classmethod
    def _object_as_name(cls, value: object) -> object:
        """Accept a class, a function or a module, as a script gives a member of its own."""
        if hasattr(value, "state_dict") and not isinstance(value, type):
            # Who has a module has imported torch.
            from pfl_flower.objective.given_modules import as_factory

            value = as_factory(cast(Any, value))
        return given(value) if callable(value) else value

    @field_validator(*OPTIONS, mode="before")
    @classmethod
    def _options_as_text(cls, value: object) -> object:
        """Accept a mapping, which is how a script gives options."""
        return json.dumps(value) if isinstance(value, Mapping) else value

    @field_validator("name")
    @classmethod
    def _one_folder(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError("expected letters, digits, '.', '_' and '-' (it names a folder)")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for key, place in self.paths().items():
            own_path(key, place)
        check_memory(self)
        self.points_asked(), self.strategic(), self.shifts()
        for table in TABLES:
            table.check(*chosen(self, table))
        for key, right in refusals(self):
            raise KeyFault(key, self.flat()[key], right)
        return self


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """Return the validated configuration of keys spelled as in Flower's run config.

    Raises
    ------
    ConfigError
        One line for the first fault: an unknown key, an ill-typed value, an impossible combination.
    """
    twice = [key for key in values if key != kebab(key) and kebab(key) in values]
    if twice:
        raise ConfigError(f"{kebab(twice[0])}: expected one value, and {twice[0]} is given as well")
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_one_line(error, values)) from None


def unknown_key(key: str, value: object) -> str:
    """Return that there is no such key, and which ones there are, or which one may be meant."""
    known = sorted(kebab(name) for name in RunConfig.model_fields)
    near = get_close_matches(key, known, n=1)
    meant = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
    return f"{key} = {value!r}: unknown key; {meant}"


def _one_line(error: ValidationError, values: Mapping[str, Any]) -> str:
    """Return the first fault, the value as it was given and not as it was read."""
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][0])
        return unknown_key(key, values[key])
    values = {kebab(key): value for key, value in values.items()}
    if not first["loc"]:
        fault = first["ctx"]["error"]
        known = isinstance(fault, KeyFault) and fault.key in values
        return fault.told(_told(values[fault.key])) if known else str(fault)
    key = kebab(str(first["loc"][0]))
    shown = f"{key} = {values.get(key)!r}"
    if key in EITHER:
        return f"{shown}: expected {EITHER[key]}"
    if first["type"] == "string_type":
        return f"{shown}: expected text"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{shown}: expected {message.removeprefix('expected ')}"


def _told(value: object) -> object:
    """Return a value as a line shows it: a member that a script gave by its name."""
    if callable(value):
        return given(value)
    return json.dumps(value) if isinstance(value, Mapping) else value
