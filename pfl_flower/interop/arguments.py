"""The arguments of ``attack_mod``, checked before the app starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfl_flower.attacks.attack import Attack
from pfl_flower.interop.table import MOD_ATTACKS
from pfl_flower.interop.targets import Target, checked_target
from pfl_flower.interop.who import Attackers
from pfl_flower.support.errors import ConfigError, spelled
from pfl_flower.support.foreign_text import one_line

SURROGATES = 4
"""Draws beside the client's own: of 5 rows a deviation is right to a third, and an attacker works
five times as long as an honest client."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What an attacking mod was asked for.

    Attributes
    ----------
    attack : str or Attack
        A name of the table, or an object.
    attackers : Attackers
        On which nodes.
    surrogates : int or tuple of int
        Further runs of the app's own code, by number or on partitions; 0 for an attack that looks
        at none.
    others
        As of ``attack_mod``.
    """

    attack: str | Attack[Any]
    attackers: Attackers
    strength: float | None
    target: Target | None
    weight: float | None
    coalition: int | None
    surrogates: int | tuple[int, ...]
    delay: int | None
    num_examples: int | None
    weighted_by: str
    seed: int

    @property
    def name(self) -> str:
        """What the attack is called."""
        return self.attack if isinstance(self.attack, str) else type(self.attack).__name__


def checked_arguments(
    attack: str | Attack[Any],
    *,
    partitions: Sequence[int] | None,
    share: float | None,
    seed: int,
    weighted_by: str,
    num_examples: int | None,
    **given: Any,
) -> Arguments:
    """Return the arguments if they are right.

    Raises
    ------
    ConfigError
        One line that names the argument, its value and what would be right.
    """
    if isinstance(attack, str):
        _check_name(attack, {**given, "num_examples": num_examples})
    elif not isinstance(attack, Attack):
        raise ConfigError(
            f"attack = {one_line(attack)}: expected {', '.join(MOD_ATTACKS)}, or an object with "
            "init and update"
        )
    _check_whole("seed", seed, least=-(2**63))
    for name, least in (("coalition", 1), ("delay", 1)):
        if given[name] is not None:
            _check_whole(name, given[name], least=least)
    if num_examples is not None:
        _check_whole("num_examples", num_examples, least=0, most=2**63 - 1)
    if not isinstance(weighted_by, str) or not weighted_by:
        raise ConfigError(f"weighted_by = {spelled(weighted_by)}: expected the name of a metric")
    _check_number("strength", given["strength"], math.inf)
    _check_number("weight", given["weight"], 1.0)
    target = given["target"]
    return Arguments(
        attack=attack,
        attackers=Attackers(partitions=partitions, share=share, seed=seed),
        strength=given["strength"],
        target=None if target is None else checked_target(target),
        weight=given["weight"],
        coalition=given["coalition"],
        surrogates=_surrogates(attack, given["surrogates"]),
        delay=given["delay"],
        num_examples=num_examples,
        weighted_by=weighted_by,
        seed=seed,
    )


def _check_name(attack: str, given: Mapping[str, Any]) -> None:
    """Refuse an unknown attack, an argument it needs, and one that it does not read."""
    if attack not in MOD_ATTACKS:
        raise ConfigError(f"attack = {spelled(attack)}: expected {', '.join(MOD_ATTACKS)}")
    row = MOD_ATTACKS[attack]
    for name in row.needs:
        if given[name] is None:
            raise ConfigError(f"{name} = nothing: expected a value, which {attack} needs")
    for name, value in given.items():
        if value is not None and name not in (*row.reads, *row.needs, "num_examples"):
            reads = ", ".join(row.reads) or "none of these"
            raise ConfigError(f"{name} = {one_line(value)}: expected none, {attack} reads {reads}")


def _surrogates(attack: str | Attack[Any], given: Any) -> int | tuple[int, ...]:
    if given is None:
        looks = isinstance(attack, str) and "surrogates" in MOD_ATTACKS[attack].reads
        return SURROGATES if looks else 0
    if isinstance(given, int) and not isinstance(given, bool):
        _check_whole("surrogates", given, least=1)
        return given
    if isinstance(given, Sequence) and not isinstance(given, str | bytes) and given:
        for one in given:
            _check_whole("surrogates", one, least=0)
        return tuple(given)
    raise ConfigError(f"surrogates = {one_line(given)}: expected a number or ids of partitions")


def _check_whole(name: str, value: Any, *, least: int, most: int | None = None) -> None:
    right = "expected a whole number" + (f" from {least}" if abs(least) < 2**62 else "")
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} = {one_line(value)}: {right}")
    if most is not None and value > most:
        raise ConfigError(f"{name} = {value}: {right} to {most}")


def _check_number(name: str, value: Any, most: float) -> None:
    if value is None:
        return
    right = "a number above 0" + (f", at most {most:g}" if most < math.inf else "")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= most or not math.isfinite(value):
        raise ConfigError(f"{name} = {one_line(value)}: expected {right}")
