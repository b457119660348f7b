"""Keys that mean nothing to the rest of a configuration: none may be given and not heeded.

A table's row says which keys its member reads that others of the table do not (``reads``). Here
are the others whose meaning hangs on another key. A key that is not read must have its default:
what the server has before it, Flower's merge of all defaults and of what was given, does not tell
these apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from pfl_flower.aggregation.table import (
    AGGREGATIONS,
    MIXED,
    MOST_SEARCHED,
    most_tolerated,
    names_f,
)
from pfl_flower.attacks.poisoning.table import POISONINGS, method_for
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.run.keys import Keys, kebab
from pfl_flower.run.settings import Settings
from pfl_flower.run.tables import TABLES, chosen
from pfl_flower.support.errors import ConfigError, spelled
from pfl_flower.support.extensions import Refusal, Table

POISONING = tuple(kebab(name) for name in Keys.model_fields if name.startswith("poisoning"))
ATTACKING = (
    *(kebab(name) for name in Keys.model_fields if name.startswith("attack")),
    "estimator",
    "coalition",
    "initialization",
    *POISONING,
)
"""Keys that only a strategic user reads."""


class Reader(NamedTuple):
    """Keys, whether a configuration reads them, and when one does."""

    keys: tuple[str, ...]
    reads: Callable[[Settings], bool]
    when: str


def fabricates(config: Settings) -> bool:
    """Return whether data may be fabricated: an attack of one's own can ask for them."""
    row = ATTACKS.row(config.attack)
    return row is ATTACKS.own or row.told_by == POISONINGS.point


def _solves(config: Settings) -> bool:
    exact = config.attack_model == "exact" and "attack-model" in ATTACKS.row(config.attack).reads
    return config.local_solver == "exact" or config.equilibrium or exact


def _held(config: Settings) -> bool:
    """Whether a strategic user pretends to hold one model, by lam where reports have no R."""
    return bool(config.strategic()) and ATTACKS.row(config.attack).rest == "model"


SERVER = tuple(
    kebab(name) for name in Keys.model_fields if name.startswith(("server_", "aggregation"))
)
"""Keys of how reports move rho."""
NAMING = [name for name in AGGREGATIONS if most_tolerated(name, MOST_SEARCHED) is not None]
"""Rules that name an f as they stand."""
HANDING = [name for name, row in AGGREGATIONS.items() if row.hands_on and name not in NAMING]
"""Rules that name the f of the one that they hand rows on to, where that has one."""
TIED = "unless personalization = joint, ditto"
STEPS = "unless local-solver = adam, sgd"
READERS = (
    Reader(
        ("local-lr", "local-lr-decay", "local-lr-floor"),
        lambda config: config.local_solver != "exact",
        STEPS,
    ),
    Reader(
        ("initialization", "initialization-noise"),
        lambda config: config.local_solver != "exact",
        f"{STEPS}: an exact solve ends in the same model from any start",
    ),
    Reader(
        ("solver-tolerance", "solver-iterations"),
        _solves,
        "unless local-solver = exact, equilibrium = true, or theta_spade is worked out exactly",
    ),
    Reader(
        ("server-lr-decay", "server-lr-floor"),
        lambda config: config.server_lr != "auto",
        "unless server-lr is a number",
    ),
    Reader(
        ("aggregation-tolerance",),
        names_f,
        f"unless aggregation = {', '.join(NAMING)}, {' or '.join(HANDING)} before one of these, or "
        f"{MIXED} = true",
    ),
    Reader(("holdout",), lambda config: not config.test_data, "with test-data, which is held out"),
    Reader(
        ("state-dir",),
        lambda config: bool(config.checkpoint_every or config.resume),
        "unless checkpoint-every or resume is set",
    ),
    Reader(
        POISONING,
        fabricates,
        f"unless attack = {', '.join(n for n, r in ATTACKS.items() if r.told_by == 'poisoning')}",
    ),
    Reader(
        ("regularizer", "regularizer-options"),
        lambda config: config.way.tied,
        f"{TIED}: nothing else is tied to rho",
    ),
    Reader(
        ("lam",),
        lambda config: config.way.tied or (config.way.moves and _held(config)),
        f"{TIED}, or classical with attack = model",
    ),
    Reader(
        ("gradient-rtol", "update-order", "initialization"),
        lambda config: config.way.coupled,
        "unless personalization = joint: no other report is made of theta_n",
    ),
    Reader(
        ("local-steps",),
        lambda config: config.way.tied or not config.way.moves,
        "for personalization = classical, where users take no steps",
    ),
    Reader(
        (*SERVER, "max-gradient-norm"),
        lambda config: config.way.moves,
        "for personalization = local, where rho stays at its start",
    ),
)


def unread(config: Settings) -> Iterator[Refusal]:
    """Yield the keys that were set, though the configuration does not read them."""
    for reader in READERS:
        if not reader.reads(config):
            for key in reader.keys:
                if changed(config, key):
                    yield Refusal(key, f"{default(key)}, {reader.when}")
    for table in TABLES:
        if table is not POISONINGS or fabricates(config):
            yield from _unread_of(config, table)


def check_given(config: Settings, given: Iterable[str]) -> None:
    """Refuse what is given of an attack where nobody is strategic.

    What a preset says of its attack may stand there: ``strategic-users = none`` takes the attacker
    away and leaves the rest comparable.

    Raises
    ------
    ConfigError
        One line for the first such key.
    """
    if config.strategic():
        return
    for key in given:
        if kebab(key) in ATTACKING and changed(config, kebab(key)):
            value = spelled(config.flat()[kebab(key)])
            right = f"no key of an attack, for strategic-users = {spelled(config.strategic_users)}"
            raise ConfigError(f"{kebab(key)} = {value}: expected {right}")


def changed(config: Settings, key: str) -> bool:
    """Return whether a key has another value than its default."""
    name = key.replace("-", "_")
    return bool(getattr(config, name) != Keys.model_fields[name].default)


def default(key: str) -> str:
    """Return a key's default in words."""
    value = Keys.model_fields[key.replace("-", "_")].default
    return "empty" if value == "" else str(value).lower() if value is False else str(value)


def _unread_of(config: Settings, table: Table[Any]) -> Iterator[Refusal]:
    value = chosen(config, table)[0]
    shown = value
    if table is POISONINGS:
        value = method_for(value, config.loss)
    read = table.row(value).reads
    for key in dict.fromkeys(key for row in table.values() for key in row.reads):
        if key not in read and changed(config, key):
            readers = ", ".join(table.readers(key))
            also = f", and {shown} is {value} here" if shown != value else ""
            yield Refusal(key, f"{default(key)}, unless {table.point} = {readers}{also}")
