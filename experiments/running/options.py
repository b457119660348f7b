"""What a person may ask of an experiment, and the settings it comes to."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from experiments.running.elsewhere import spelled_out
from pfl_flower.run.config import RunConfig, parse_config, unknown_key
from pfl_flower.run.keys import Scalar, kebab
from pfl_flower.run.presets import as_folder
from pfl_flower.run.unread import check_given
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
    jobs : int
        Processes that run the parts of a study side by side, where it has such.
    study : mapping
        Options of one study alone.
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
    jobs: int = 1
    study: Mapping[str, str] = field(default_factory=dict)

    def configure(
        self, base: Mapping[str, Scalar], folder: Path, seed: int, name: str = ""
    ) -> RunConfig:
        """Return the configuration of one seed's run.

        Results go to ``folder/name``, ``folder/seed-N`` when there is no name.
        """
        asked: dict[str, Scalar] = {} if self.device == "auto" else {"device": self.device}
        if self.rounds is not None:
            asked["rounds"] = self.rounds
        once(self.settings, asked)
        values: dict[str, Scalar] = {**base, "device": self.device, **self.settings, **asked}
        place = as_folder(folder / (name or f"seed-{seed}"))
        config = parse_config({**values, "seed": seed, **place})
        check_given(config, self.settings)
        if self.engine == "simulation":
            return parse_config({**config.flat(), **spelled_out(config)})
        return config


KEYS = tuple(sorted(map(kebab, RunConfig.model_fields)))
MOST_SEEDS = 100_000
"""More runs than anybody waits for; a mistyped range is said to be one, not filled in."""
SWEPT = "KEY=VALUE,VALUE,..."
WORDS = frozenset(
    kebab(name) for name, field in RunConfig.model_fields.items() if field.annotation is str
)
"""Keys whose value is text."""
RESERVED = {"seed": "--seeds", "output-dir": "--output", "name": "--output"}


def parse_settings(pairs: Sequence[str]) -> dict[str, Scalar]:
    """Return ``key=value`` pairs as run-config entries; values are TOML, and bare words are text.

    Raises
    ------
    ConfigError
        If a pair has no ``=``, names a key that has an option of its own, or one that was named
        before.
    """
    settings: dict[str, Scalar] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {pair}: expected key=value")
        if key in RESERVED:
            raise ConfigError(f"--set {pair}: expected {RESERVED[key]} instead")
        if kebab(key) in map(kebab, settings):
            raise ConfigError(f"--set {pair}: expected {key} once, and it is given twice")
        value = _value(text)
        # A number there is read by nobody before the key itself.
        settings[key] = text if kebab(key) in WORDS and not isinstance(value, str) else value
    return settings


def parse_over(pairs: Sequence[str]) -> dict[str, list[Scalar]]:
    """Return swept keys and their values: a TOML array's, or words between commas.

    >>> parse_over(["lam=0.1,1", "attack=cga,model", 'points-per-user="60000,10","500"'])
    {'lam': [0.1, 1], 'attack': ['cga', 'model'], 'points-per-user': ['60000,10', '500']}

    Raises
    ------
    ConfigError
        If a pair has no ``=``, a key stands there twice or has an option of its own.
    """
    found: dict[str, list[Scalar]] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        if not key or not text:
            raise ConfigError(f"--over {pair}: expected {SWEPT}")
        if key in RESERVED or key in found:
            other = RESERVED.get(key, "all its values at once")
            raise ConfigError(f"--over {pair}: expected {other} instead")
        found[key] = _array(text)
    return found


def _array(text: str) -> list[Scalar]:
    if not re.search("[\"'\\[{]", text):
        return [_value(part.strip()) for part in text.split(",")]
    try:
        values = tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:
        values = None
    if values and all(isinstance(value, bool | int | float | str) for value in values):
        return list(values)
    return [_value(part) for part in text.split(",")]


def check_keys(settings: Mapping[str, Scalar]) -> None:
    """Raise ConfigError at the first key that no run configuration has."""
    for key, value in settings.items():
        if key not in KEYS:
            raise ConfigError(unknown_key(key, value))


def once(settings: Mapping[str, Scalar], options: Mapping[str, Scalar]) -> None:
    """Refuse a key of ``--set`` that an option of its own gives as well.

    Raises
    ------
    ConfigError
        One line for the first such key.
    """
    for key in options:
        if key in settings:
            right = f"either this or --{key} {options[key]}, and not both"
            raise ConfigError(f"--set {key}={settings[key]}: expected {right}")


class _Float(float):
    """A number that is shown as it was typed."""

    typed = ""

    def __repr__(self) -> str:
        return self.typed


class _Int(int):
    """A whole number that is shown as it was typed."""

    typed = ""

    def __repr__(self) -> str:
        return self.typed


def _value(text: str) -> Scalar:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        return value if isinstance(value, bool | str) else text
    number = _Int(value) if isinstance(value, int) else _Float(value)
    number.typed = text
    return number


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of a list of numbers and ranges.

    >>> parse_seeds("7,1-3")
    (7, 1, 2, 3)

    Raises
    ------
    ConfigError
        If an entry is not a whole number or a range, or a seed stands there twice.
    """
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise ConfigError(f"--seeds {text}: expected whole numbers such as 1,2,7-9")
    ends = [part.partition("-") for part in text.split(",")]
    if sum(max(0, int(last or first) - int(first)) for first, _, last in ends) > MOST_SEEDS:
        raise ConfigError(f"--seeds {text}: expected at most {MOST_SEEDS:,}, one run each")
    seeds = tuple(
        seed for first, _, last in ends for seed in range(int(first), int(last or first) + 1)
    )
    if not seeds:
        raise ConfigError(f"--seeds {text}: expected at least one")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text}: expected different numbers")
    return seeds
