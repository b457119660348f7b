"""All extension points: what the configuration checks, ``list`` shows and the READMEs repeat."""

from __future__ import annotations

from typing import Any

from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.attacks.poisoning.table import POISONINGS
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.data.table import DATASETS
from pfl_flower.objective.table import MODELS, REGULARIZERS
from pfl_flower.support.extensions import Table

TABLES: tuple[Table[Any], ...] = (
    DATASETS,
    MODELS,
    REGULARIZERS,
    AGGREGATIONS,
    ATTACKS,
    POISONINGS,
)
"""One table for each key that names something, in the order of the keys."""
