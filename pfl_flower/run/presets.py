"""The presets by name, and the settings that a preset and further keys come to."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pfl_flower.run.keys import Keys, Scalar, kebab
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.folders import own_path

FOLDER = Path(__file__).parent.parent / "presets"


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def preset(name: str) -> dict[str, Scalar]:
    """Return the keys that a preset sets.

    Raises
    ------
    ConfigError
        If there is no such preset.
    """
    if name not in preset_names():
        raise ConfigError(f"preset = {name}: expected one of {', '.join(preset_names())}")
    with (FOLDER / f"{name}.toml").open("rb") as file:
        return tomllib.load(file)


@cache
def settings_of(name: str) -> Mapping[str, Scalar]:
    """Return every key of a preset as it stands; nothing where no preset is called so."""
    if name not in preset_names():
        return {}
    defaults = {kebab(key): field.default for key, field in Keys.model_fields.items()}
    return {**defaults, **preset(name)}


def description(name: str) -> str:
    """Return what a preset says of itself in its first line."""
    return (FOLDER / f"{name}.toml").read_text().splitlines()[0].lstrip("# ")


def presets() -> dict[str, str]:
    """Return every preset's name and what it says of itself."""
    return {name: description(name) for name in preset_names()}


def as_keys(values: Mapping[str, object]) -> dict[str, Any]:
    """Return settings as the run config spells them: from Python's names and Python's values.

    Lists are joined by commas, paths become text, NumPy's numbers Python's. What has no such form
    stays as it is, for the configuration to read or to refuse.

    >>> as_keys({"points_per_user": [600, 10], "data_dir": Path("/data")})
    {'points-per-user': '600,10', 'data-dir': '/data'}

    Raises
    ------
    ConfigError
        If a key is given twice, in both spellings.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if kebab(key) in found:
            raise ConfigError(f"{kebab(key)}: expected one value, and {key} gives another")
        found[kebab(key)] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float | str | Mapping) or callable(value):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return value.item()
    if isinstance(value, Iterable):
        return ",".join(str(_plain(entry)) for entry in value)
    return value


def as_folder(folder: str | Path) -> dict[str, Scalar]:
    """Return the keys of a run whose results go to this very folder, whatever its settings.

    >>> as_folder("/tmp/mine")
    {'output-dir': '/tmp/mine', 'name': 'mine'}
    """
    place = own_path("output-dir", folder)
    return {"output-dir": str(place), "name": place.name}
