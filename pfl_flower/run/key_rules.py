"""Which run-config values rule out which others."""

from __future__ import annotations

from typing import NamedTuple

from pfl_flower.aggregation.rules import most_tolerated
from pfl_flower.run.settings import Settings

METHODS_FOR = {
    "least-squares": ("auto", "single-point", "sampling"),
    "logistic": ("auto", "sampling", "indifference", "matching", "repeated"),
    "softmax": ("auto", "sampling", "indifference", "matching"),
}
"""The poisonings that each loss admits."""

WITHOUT_STRENGTH = ("cga", "model", "data", "label-flip", "min-max")


class Rule(NamedTuple):
    """A key, whether its value is wrong, and what would be right."""

    key: str
    wrong: bool
    right: str


def rules(config: Settings) -> list[Rule]:
    """Return the rules of all combinations of keys."""
    return [
        *_solver_rules(config),
        *_aggregation_rules(config),
        *_attack_rules(config),
        *_poison_rules(config),
    ]


def _solver_rules(config: Settings) -> list[Rule]:
    exact = config.local_solver == "exact"
    linear = config.model == "linear"
    adam = config.server_optimizer == "adam"
    return [
        Rule("model", exact and not linear, "linear, for exact solves"),
        Rule("model", config.synthetic and not linear, "linear, for synthetic data"),
        Rule("model", config.equilibrium and not linear, "linear, for an exact equilibrium"),
        Rule(
            "honest-distance", config.honest_distance and config.synthetic, "false, without images"
        ),
        Rule("dtype", exact and config.dtype != "float64", "float64, for exact solves"),
        Rule("batch-size", exact and config.batch_size > 0, "0, for exact solves"),
        Rule("update-order", exact and config.simultaneous, "local-first, for exact solves"),
        Rule("server-lr", adam and config.server_lr == "auto", "a number, under Adam"),
    ]


def _aggregation_rules(config: Settings) -> list[Rule]:
    name, users, f = config.aggregation, config.users, config.tolerance()
    most = most_tolerated(name, users, mixing=config.aggregation_mixing)
    # An f of 0 is not offered, so that too few users cannot be mended by another f.
    few = most is not None and most < 1
    needed = 5 if name.endswith("krum") else 3
    multi, clipped = name == "multi-krum", name == "centred-clipping"
    return [
        Rule("users", few, f"at least {needed}, for an aggregation that withstands one of them"),
        Rule(
            "aggregation-tolerance",
            most is not None and not few and f > most,
            f"1 to {most}, for {users} users and this aggregation; 0 stands for {f}",
        ),
        Rule("krum-selected", config.krum_selected > 0 and not multi, "0, unless multi-krum"),
        Rule(
            "krum-selected",
            multi and config.krum_selected > users - f,
            f"at most {users - f}, for {users} users of whom {f} are strategic",
        ),
        Rule(
            "clipping-radius",
            config.clipping_radius > 0 and not clipped,
            "0, unless aggregation = centred-clipping",
        ),
    ]


def _attack_rules(config: Settings) -> list[Rule]:
    negate, relabel = config.target == "negate", config.target == "relabel"
    fixed = config.attack in ("model", "data") and config.attack_model == "exact"
    known = config.attack in ("cga", "model", "data") or not config.strategic()
    return [
        Rule("target", config.synthetic and relabel, "negate, for synthetic data"),
        Rule("target", not config.synthetic and negate, "relabel, for images"),
        Rule(
            "target-shift",
            config.synthetic and set(config.shifts()) != {1},
            "1, for synthetic data, which have one target",
        ),
        Rule(
            "estimator",
            config.inverts_adam,
            "oracle, or server-optimizer = sgd: Equation 5 cannot be inverted under Adam",
        ),
        Rule(
            "attack-model",
            fixed and config.model != "linear",
            "the folder of a CGA run, for a model that is not linear",
        ),
        Rule(
            "attack-strength",
            config.attack_strength > 0 and config.attack in WITHOUT_STRENGTH,
            f"0, for attack = {config.attack}",
        ),
        Rule(
            "equilibrium",
            config.equilibrium and not known,
            "false, unless attack = cga, model or data",
        ),
    ]


def _poison_rules(config: Settings) -> list[Rule]:
    data, linear = config.attack == "data", config.model == "linear"
    admitted = METHODS_FOR[config.loss]
    builtin = ":" not in config.poisoning
    return [
        Rule(
            "poisoning",
            data and builtin and config.poisoning not in admitted,
            f"{', '.join(admitted)}, for a {config.loss} loss",
        ),
        Rule(
            "poisoning",
            data and builtin and not linear and config.poisoning != "sampling",
            "sampling, for a model that is not linear",
        ),
        Rule("reduction", data and config.reduction != "sum", "sum, for data poisoning"),
        Rule(
            "initialization",
            config.initialization == "attack-model" and not data,
            "global, unless attack = data",
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
