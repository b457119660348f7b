"""Which run-config values rule out which others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pfl_flower.attacks.poisoning.table import EVERY_LOSS, POISONINGS
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.run.settings import Settings
from pfl_flower.run.tables import TABLES, chosen
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.extensions import Refusal, Table


class Rule(NamedTuple):
    """A key, whether its value is wrong, and what would be right."""

    key: str
    wrong: bool
    right: str


def refusals(config: Settings) -> Iterator[Refusal]:
    """Yield what is wrong with a combination of keys, each of which is right by itself.

    The members that the keys name must admit the run; the rules of this module are about none.
    """
    yield from _broken(_solver_rules(config))
    for table in TABLES:
        if table is POISONINGS and not poisons(config):
            continue
        found = table.refusal(chosen(config, table)[0], config)
        if found is not None:
            yield found
        yield from _unread(config, table)
    yield from _broken([*_data_rules(config), *_poison_rules(config)])


def _broken(rules: Iterable[Rule]) -> Iterator[Refusal]:
    return (Refusal(key, right) for key, wrong, right in rules if wrong)


def poisons(config: Settings) -> bool:
    """Return whether the run fabricates data."""
    return ATTACKS.row(config.attack).told_by == POISONINGS.point


def check_loss(config: Settings, loss: str) -> None:
    """Refuse what cannot serve a loss, which data of one's own tell when they are there.

    Raises
    ------
    ConfigError
        If there is no such loss, or the run's poisoning makes no data for it.
    """
    if loss not in EVERY_LOSS:
        right = f"a source with a loss among {', '.join(EVERY_LOSS)}, and it is {loss!r}"
        raise ConfigError(f"dataset = {config.dataset}: expected {right}")
    if poisons(config) and loss not in POISONINGS.row(config.poisoning).losses:
        names = [name for name, row in POISONINGS.items() if loss in row.losses]
        right = f"{', '.join(names)}, for a {loss} loss"
        raise ConfigError(f"poisoning = {config.poisoning}: expected {right}")


def _unread(config: Settings, table: Table[Any]) -> Iterator[Refusal]:
    """Yield the keys that were set, though they mean nothing to the chosen member."""
    read = table.row(chosen(config, table)[0]).reads
    for key in dict.fromkeys(key for row in table.values() for key in row.reads):
        name = key.replace("-", "_")
        default = Settings.model_fields[name].default
        if key not in read and getattr(config, name) != default:
            readers = ", ".join(table.readers(key))
            yield Refusal(key, f"{default}, unless {table.point} = {readers}")


def _solver_rules(config: Settings) -> list[Rule]:
    exact = config.local_solver == "exact"
    adam = config.server_optimizer == "adam"
    return [
        Rule("dtype", exact and config.dtype != "float64", "float64, for exact solves"),
        Rule("batch-size", exact and config.batch_size > 0, "0, for exact solves"),
        Rule("local-steps", exact and config.local_steps > 1, "1, for exact solves"),
        Rule("update-order", exact and config.simultaneous, "local-first, for exact solves"),
        Rule("server-lr", adam and config.server_lr == "auto", "a number, under Adam"),
    ]


def _data_rules(config: Settings) -> list[Rule]:
    negate, relabel = config.target == "negate", config.target == "relabel"
    return [
        Rule(
            "honest-distance", config.honest_distance and config.synthetic, "false, without images"
        ),
        Rule("target", config.synthetic and relabel, "negate, for synthetic data"),
        Rule("target", not config.synthetic and negate, "relabel, for images"),
        Rule(
            "target-shift",
            config.synthetic and set(config.shifts()) != {1},
            "1, for synthetic data, which have one target",
        ),
    ]


def _poison_rules(config: Settings) -> list[Rule]:
    return [
        Rule(
            "poisoning-queries",
            config.poisoning_queries == "images" and config.synthetic,
            "gaussian or uniform, for synthetic data",
        ),
        Rule(
            "poisoning-box",
            config.poisoning_box and config.poisoning_queries == "images",
            "false, for given images",
        ),
        Rule(
            "poisoning-box",
            config.poisoning_box and config.embedded,
            "false, for embeddings, which are not in [0, 1]",
        ),
    ]
