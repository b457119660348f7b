"""A run's verdict in words: the same ones wherever a run is told of."""

from __future__ import annotations

from collections.abc import Sequence

from pfl_flower.run.checks import Check
from pfl_flower.run.preset_claims import NO_CLAIM


def verdict(checks: Sequence[Check], claims: str) -> str:
    """Return whether all checks passed, and where nothing was claimed, that.

    >>> good, bad = Check("rounds", 5, "== 5", True), Check("finite", "nan", "finite", False)
    >>> verdict([good], NO_CLAIM), verdict([good, bad], "those of the preset digits-l2")
    ('passed, no claim for these settings', 'FAILED: finite')
    """
    failed = [check.name for check in checks if not check.passed]
    said = f"FAILED: {', '.join(failed)}" if failed else "passed"
    return f"{said}, {NO_CLAIM}" if claims == NO_CLAIM else said


def in_words(check: Check) -> str:
    """Return what was measured and what was expected.

    >>> in_words(Check("distance", 2.23456e-9, "< 1e-06", True))
    'distance = 2.235e-09, expected < 1e-06'
    """
    value = f"{check.value:.4g}" if isinstance(check.value, float) else check.value
    return f"{check.name} = {value}, expected {check.expected}"
