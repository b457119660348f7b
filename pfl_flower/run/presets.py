"""The presets by name."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pfl_flower.run.keys import Scalar

FOLDER = Path(__file__).parent.parent / "presets"


def preset_names() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def preset(name: str) -> dict[str, Scalar]:
    """Return the keys that a preset sets."""
    with (FOLDER / f"{name}.toml").open("rb") as file:
        return tomllib.load(file)


def description(name: str) -> str:
    """Return what a preset says of itself in its first line."""
    return (FOLDER / f"{name}.toml").read_text().splitlines()[0].lstrip("# ")
