"""All extension points: what the configuration checks, ``list`` shows and the READMEs repeat."""

from __future__ import annotations

from typing import Any

from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.attacks.poisoning.table import POISONINGS
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.data.table import DATASETS, PARTITIONS
from pfl_flower.objective.table import MODELS, REGULARIZERS
from pfl_flower.run.keys import Keys
from pfl_flower.run.tracking.table import TRACKERS
from pfl_flower.support.extensions import Table

TABLES: tuple[Table[Any], ...] = (
    DATASETS,
    PARTITIONS,
    MODELS,
    REGULARIZERS,
    AGGREGATIONS,
    ATTACKS,
    POISONINGS,
    TRACKERS,
)
"""One table for each key that names something, in the order of the keys."""


def chosen(config: Keys, table: Table[Any]) -> tuple[str, str]:
    """Return what a run chose at an extension point: a member and its options."""
    return getattr(config, table.point), getattr(config, f"{table.point}_options")


def check_imports(config: Keys) -> None:
    """Import what the run's configuration names of one's own, and check its options.

    The configuration itself, which imports nothing, has checked all that can be told without.

    Raises
    ------
    ConfigError
        One line: what cannot be imported, with its own error, or an option that is wrong.
    """
    for table in TABLES:
        value, options = chosen(config, table)
        if table.row(value) is table.own:
            table.options(value, options)
