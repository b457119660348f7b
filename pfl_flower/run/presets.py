"""The presets by name, and the settings that a preset and further keys come to."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pfl_flower.run.keys import Scalar, kebab
from pfl_flower.support.errors import ConfigError

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
    """
    return {kebab(key): _plain(value) for key, value in values.items()}


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
    """Return the keys of a run whose results go to a folder: where it is and what it is called.

    >>> as_folder("/tmp/mine")
    {'output-dir': '/tmp', 'name': 'mine'}
    """
    place = Path(folder).expanduser().absolute()
    return {"output-dir": str(place.parent), "name": place.name}
