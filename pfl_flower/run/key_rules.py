"""Which run-config values rule out which others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pfl_flower.attacks.poisoning.table import (
    CLASSIFIERS,
    EVERY_LOSS,
    POISONINGS,
    method_for,
)
from pfl_flower.attacks.table import ATTACKS, knowledge_of
from pfl_flower.run.rest_rules import rest_refusals
from pfl_flower.run.settings import Settings
from pfl_flower.run.site_rules import site_refusals
from pfl_flower.run.tables import TABLES, chosen
from pfl_flower.run.unread import changed, default, fabricates, unread
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.extensions import Refusal


class Rule(NamedTuple):
    """A key, whether its value is wrong, and what would be right."""

    key: str
    wrong: bool
    right: str


def refusals(config: Settings) -> Iterator[Refusal]:
    """Yield what is wrong with a combination of keys, each of which is right by itself.

    The members that the keys name must admit the run; the rules of this module are about none.
    """
    yield from _broken([*_solver_rules(config), *_step_rules(config), *_sample_rules(config)])
    for table in TABLES:
        if table is POISONINGS and not poisons(config):
            continue
        found = table.refusal(chosen(config, table)[0], config)
        if found is not None:
            yield found
    yield from unread(config)
    yield from _broken([*_data_rules(config), *_attack_rules(config)])
    if fabricates(config):
        yield from _broken(_poison_rules(config))
    yield from site_refusals(config)
    yield from rest_refusals(config)


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


def check_shifts(config: Settings, outputs: int) -> None:
    """Refuse a shift that moves a class to itself, or past the last one where another has it.

    Raises
    ------
    ConfigError
        If it does, which the number of scores tells when the model is there.
    """
    most = max(outputs, 2) - 1
    if max(config.shifts()) > most:
        right = f"1 to {most}, for {outputs} classes"
        if outputs == 1:
            right = "1, for labels of one score"
        raise ConfigError(f"target-shift = {config.target_shift}: expected {right}")


def _solver_rules(config: Settings) -> list[Rule]:
    exact = config.local_solver == "exact"
    adam = config.server_optimizer == "adam"
    slopes, named = config.way.moves and not config.way.coupled, _named(config)
    return [
        Rule("dtype", exact and config.dtype != "float64", "float64, for exact solves"),
        Rule("batch-size", exact and config.batch_size > 0, "0, for exact solves"),
        Rule("local-steps", exact and config.local_steps > 1, "1, for exact solves"),
        Rule("update-order", exact and config.simultaneous, "local-first, for exact solves"),
        Rule("server-lr", adam and config.server_lr == "auto", "a number, under Adam"),
        Rule(
            "nu",
            exact and config.nu == 0 and not config.way.moves,
            f"a positive number, for exact solves of {named}: L_n alone need have no minimiser",
        ),
        Rule(
            "server-lr",
            config.server_lr == "auto" and slopes and not (config.linear and not config.away),
            f"a number, for {named}: the smoothness of L_n is not known of a model that is not "
            "linear, nor of points that lie on nodes alone",
        ),
    ]


def _named(config: Settings) -> str:
    return f"personalization = {config.personalization}"


def _step_rules(config: Settings) -> list[Rule]:
    floor, numeric = config.local_lr_floor, config.server_lr != "auto"
    first = config.server_lr * config.server_lr_factor if config.server_lr != "auto" else 0.0
    return [
        Rule(
            "local-lr-floor",
            floor != "" and floor > config.local_lr,
            f"at most local-lr, which is {config.local_lr:g}: it is a limit on the decay",
        ),
        Rule(
            "server-lr-floor",
            numeric and config.server_lr_floor > first,
            f"at most server-lr times server-lr-factor, which is {first:g}: it is a limit on the "
            "decay",
        ),
    ]


def _sample_rules(config: Settings) -> list[Rule]:
    users, asked = config.users, config.sample_size()
    return [
        Rule("participation", asked < 1, f"at least {1 / users:.6g}, so that a user is asked"),
        Rule(
            "participation",
            config.participation < 1 and asked == users,
            f"1, or at most {(users - 1) / users:.6g}: this asks all {users} users",
        ),
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


def _attack_rules(config: Settings) -> list[Rule]:
    strategic = len(config.strategic())
    known, levels = knowledge_of(config), ATTACKS.row(config.attack).knows
    return [
        Rule(
            "attack-knowledge",
            known not in levels,
            f"{', '.join(levels)}, or empty, for attack = {config.attack}",
        ),
        Rule(
            "attack-knowledge",
            config.site and known == "omniscient",
            "another, for site = true: no participant is told the others' reports",
        ),
        Rule(
            "target-shift",
            ATTACKS.row(config.attack).trigger and changed(config, "target-shift"),
            f"{default('target-shift')}, for attack = {config.attack}: its label is an option",
        ),
        Rule(
            "coalition",
            0 < strategic < config.coalition,
            f"at most {strategic}, the number of strategic users; 0 stands for all of them",
        ),
    ]


def _poison_rules(config: Settings) -> list[Rule]:
    method = method_for(config.poisoning, config.loss)
    images = config.poisoning_queries == "images"
    return [
        Rule(
            "poisoning-queries",
            method == "matching" and changed(config, "poisoning-queries") and not images,
            "gaussian or images, for matching, which designs its queries",
        ),
        Rule(
            "poisoning-noise",
            method == "sampling"
            and changed(config, "poisoning-noise")
            and config.loss in CLASSIFIERS,
            f"{default('poisoning-noise')}, for the labels of a classifier, which are drawn",
        ),
        Rule(
            "poisoning-draws",
            method == "indifference"
            and changed(config, "poisoning-draws")
            and config.poisoning_labels == "soft",
            f"{default('poisoning-draws')}, unless poisoning-labels = drawn",
        ),
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
