"""The run configuration: every key with its unit, default and meaning, validated first."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Self, cast

from pydantic import ValidationError, field_validator, model_validator

from pfl_flower.run.key_rules import refusals
from pfl_flower.run.keys import kebab
from pfl_flower.run.memory import check_memory
from pfl_flower.run.settings import Settings
from pfl_flower.run.tables import TABLES, chosen
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.folders import own_path
from pfl_flower.support.plugins import given

POINTS = tuple(table.point for table in TABLES)
OPTIONS = tuple(f"{point}_options" for point in POINTS)


class RunConfig(Settings):
    """One run of personalised federated learning, as Flower's run config carries it."""

    @field_validator("points_per_user", "strategic_users", "target_shift", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        """Accept a bare number, which is how Flower's command line reads ``strategic-users=3``."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("server_lr", "test_share", mode="before")
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
            raise ValueError(f"{key} = {self.flat()[key]}: expected {right}")
        return self


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
    if key == "test-share":
        return f"{key} = {values.get(key)!r}: expected auto, or a number from 0 to less than 1"
    if key == "server-lr":
        return f"{key} = {values.get(key)!r}: expected auto or a positive number"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key} = {values.get(key)!r}: expected {message.removeprefix('expected ')}"
