"""One kind of check for studies: a metric within limits, in every seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.studies.study import Result
from pfl_flower.run.checks import Check


def within(
    results: Sequence[Result],
    key: str,
    name: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
) -> Check:
    """Return whether a metric lies within limits in every result; shown is the worst of them.

    A metric that a result lacks, or that is not a number, fails; so does having no result.

    >>> results = [{"metrics": {"miss": 0.1}}, {"metrics": {"miss": 0.3}}]
    >>> check = within(results, "miss", "miss", high=0.2)
    >>> check.value, check.expected, check.passed
    (0.3, '<= 0.2', False)
    """
    values = [float(result["metrics"].get(key, math.nan)) for result in results] or [math.nan]
    margins = [min(value - low, high - value) for value in values]
    # A comparison with NaN is False, so that it counts as the worst.
    worst = next((i for i, m in enumerate(margins) if not m >= 0), margins.index(min(margins)))
    if low == -math.inf:
        expected = f"<= {high:g}"
    else:
        expected = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
    return Check(name, values[worst], expected, all(margin >= 0 for margin in margins))
