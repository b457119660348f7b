"""What a person may ask of an experiment, and the settings it comes to."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.keys import Scalar, kebab
from pfl_flower.support.errors import ConfigError

Engine = Literal["inprocess", "simulation"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line's options.

    Attributes
    ----------
    engine : {"inprocess", "simulation"}
        Who carries the messages.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    seeds : tuple of int or None
        One run each; the experiment's own when absent.
    rounds : int or None
        In place of the experiment's own number.
    output : Path
        Absolute folder; results go to ``output/NAME``.
    settings : mapping
        Run-config keys in place of the experiment's own.
    nodes : int or None
        Number of nodes; the engine's default when absent.
    fresh : bool
        Run finished seeds again.
    keep : bool
        Keep finished seeds of other versions of the code too.
    quick : bool
        Smaller sizes, where a study has them, and one seed unless ``seeds`` names others.
    control : bool
        An idle attacker in a study: its claims must then fail.
    """

    engine: Engine = "inprocess"
    device: str = "auto"
    seeds: tuple[int, ...] | None = None
    rounds: int | None = None
    output: Path = field(default_factory=lambda: Path.home() / "pfl-flower")
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    nodes: int | None = None
    fresh: bool = False
    keep: bool = False
    quick: bool = False
    control: bool = False

    def configure(
        self, base: Mapping[str, Scalar], folder: Path, seed: int, name: str = ""
    ) -> RunConfig:
        """Return the configuration of one seed's run.

        Results go to ``folder/name``, ``folder/seed-N`` when there is no name.
        """
        values: dict[str, Scalar] = {**base, "device": self.device, **self.settings}
        if self.rounds is not None:
            values["rounds"] = self.rounds
        own: dict[str, Scalar] = {
            "seed": seed,
            "output-dir": str(folder),
            "name": name or f"seed-{seed}",
        }
        return parse_config({**values, **own})


KEYS = tuple(sorted(map(kebab, RunConfig.model_fields)))
RESERVED = {"seed": "--seeds", "output-dir": "--output", "name": "--output"}


def parse_settings(pairs: Sequence[str]) -> dict[str, Scalar]:
    """Return ``key=value`` pairs as run-config entries; values are TOML, and bare words are text.

    Raises
    ------
    ConfigError
        If a pair has no ``=``, or names a key that has an option of its own.
    """
    settings: dict[str, Scalar] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {pair}: expected key=value")
        if key in RESERVED:
            raise ConfigError(f"--set {pair}: expected {RESERVED[key]} instead")
        settings[key] = _value(text)
    return settings


def check_keys(settings: Mapping[str, Scalar]) -> None:
    """Raise ConfigError at the first key that no run configuration has."""
    for key, value in settings.items():
        if key not in KEYS:
            raise ConfigError(f"{key} = {value!r}: unknown key; the keys are {', '.join(KEYS)}")


def _value(text: str) -> Scalar:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, bool | int | float | str) else text


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of ``1,2,3``.

    Raises
    ------
    ConfigError
        If an entry is not a whole number, or stands there twice.
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds {text}: expected whole numbers such as 1,2,3") from None
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text}: expected different numbers")
    return seeds
