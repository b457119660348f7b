"""Options of extensions: JSON text, checked against a model or against a signature."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from pfl_flower.support.errors import ConfigError

EXAMPLE = '{"gain": 2.0}'
STRICT = ConfigDict(
    frozen=True, extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
)


class Options(BaseModel):
    """Options of a member: none; those of others are fields of a subclass."""

    model_config = STRICT


def parse_options(
    key: str, text: str, model: type[BaseModel] | None, *, keyed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return those options that ``text`` gives, by name; the others are the factory's own.

    Parameters
    ----------
    key, text : str
        ``POINT-options`` and its value: a JSON object, or nothing.
    model : type of BaseModel or None
        What the options are; None if that cannot be told yet, and nothing is returned.
    keyed : mapping, optional
        Parameters that are no options, because a key of the run configuration sets them.

    Raises
    ------
    ConfigError
        One line: no JSON object, an unknown option, a wrong value, or one that is missing.

    Examples
    --------
    >>> parse_options("attack-options", "", Options)
    {}
    >>> parse_options("attack-options", '{"gain": 2.0}', Options)
    Traceback (most recent call last):
    pfl_flower.support.errors.ConfigError: attack-options = {"gain": 2.0}: gain: \
expected no option
    """
    given = _object(key, text)
    if model is None:
        return {}
    for name in given:
        if keyed and name in keyed:
            raise ConfigError(f"{key} = {text}: {name} has a key of its own, {keyed[name]}")
    try:
        parsed = model.model_validate_json(text or "{}")
    except ValidationError as error:
        raise ConfigError(f"{key} = {text}: {_fault(error, model)}") from None
    named = {(field.alias or name): name for name, field in model.model_fields.items()}
    extra = parsed.model_extra or {}
    return {name: extra[name] if name in extra else getattr(parsed, named[name]) for name in given}


def _object(key: str, text: str) -> dict[str, Any]:
    try:
        given = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"{key} = {text}: expected JSON such as {EXAMPLE} ({error})") from None
    if not isinstance(given, dict):
        raise ConfigError(f"{key} = {text}: expected a JSON object such as {EXAMPLE}")
    return given


def _fault(error: ValidationError, model: type[BaseModel]) -> str:
    # A misspelt option is also one that is missing: what was given says more.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in model.model_fields.items()]
        return f"{name}: expected {', '.join(known) or 'no option'}"
    if first["type"] == "missing":
        return f"{name}: expected a value, and it is missing"
    right = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{name} = {json.dumps(first['input'])}: expected {right.removeprefix('expected ')}"


@lru_cache(maxsize=64)
def signature_options(
    factory: Callable[..., Any], passed: tuple[str, ...], keyed: tuple[str, ...]
) -> type[BaseModel] | None:
    """Return the options that a callable's signature allows: its parameters but the program's.

    Parameters
    ----------
    factory : callable
        Its annotations are the options' types; a parameter without one takes any JSON value.
    passed : tuple of str
        What it is called with by position, whatever it calls these.
    keyed : tuple of str
        Parameters that the program gives by name.

    Returns
    -------
    type of BaseModel or None
        None if it cannot be called with so many arguments.
    """
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        # What is written in C has no signature: it is taken to have no parameters but these.
        parameters = []
        passed = ()
    kinds = [one.kind for one in parameters]
    placed = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, _EITHER)]
    if len(placed) < len(passed) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        return None
    free = [one for one in parameters if one not in placed[: len(passed)]]
    named = [one for one in free if one.kind in (_EITHER, one.KEYWORD_ONLY)]
    extra = inspect.Parameter.VAR_KEYWORD in kinds
    return _model([one for one in named if one.name not in keyed], _hints(factory), extra)


_EITHER = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    try:
        made = isinstance(factory, type)
        return get_type_hints(inspect.getattr_static(factory, "__init__") if made else factory)
    except Exception:
        # Annotations that name what is not there at run time say nothing about options.
        return {}


def _model(
    parameters: Collection[inspect.Parameter], hints: Mapping[str, Any], extra: bool
) -> type[BaseModel]:
    """Return the parameters as a model; fields are numbered, as their names may be pydantic's."""
    config = ConfigDict(**{**STRICT, "extra": "allow" if extra else "forbid"})

    def build(hints: Mapping[str, Any]) -> type[BaseModel]:
        fields: dict[str, Any] = {}
        for number, one in enumerate(parameters):
            default = ... if one.default is one.empty else one.default
            kind = hints.get(one.name, Any)
            fields[f"option_{number}"] = (kind, Field(default, alias=one.name))
        return create_model("OwnOptions", __config__=config, **fields)

    try:
        return build(hints)
    except PydanticUserError:
        return build({})
