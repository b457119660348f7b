"""Rules that others hand their rows to, by name: ``aggregation-options = '{"then": "median"}'``."""

from __future__ import annotations

from torch import Tensor

from pfl_flower.aggregation.rules import bind
from pfl_flower.aggregation.table import AGGREGATIONS


def rule_then(name: str, rows: Tensor, tolerance: int) -> Tensor:
    """Return what a rule of the table makes of rows that another has changed.

    It has its own defaults and is told f.
    """
    return bind(AGGREGATIONS.load(name), tolerance=tolerance)(rows)
