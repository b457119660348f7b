"""What a study measured, in a few words: numbers over all seeds, asked by the metrics' names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Self


class NotMeasuredError(Exception):
    """The results lack a metric that the words name: those of other code, or of a smaller form."""


@dataclass(frozen=True)
class Measured:
    """The metrics of all seeds.

    A name may hold ``*``: asked for is then every metric of such a name. Each question raises
    NotMeasuredError if there is none.

    Attributes
    ----------
    values : mapping
        By metric, its value for each seed that has it.

    Examples
    --------
    >>> found = Measured({"miss: l2": [1e-9, 3e-9], "miss: smooth l2": [2e-9], "cells": [8, 9]})
    >>> f"{found.high('miss: *'):.0e} in {found.total('cells'):g} cells"
    '3e-09 in 17 cells'
    """

    values: Mapping[str, Sequence[float]]

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Self:
        """Return the metrics of a ``summary.json``; it spells what JSON lacks: "nan", "inf"."""
        metrics: Mapping[str, Any] = summary["metrics"]
        return cls({name: [*map(float, metric["values"])] for name, metric in metrics.items()})

    def low(self, *names: str, but: str = "") -> float:
        """Return the least value of any seed and of any of these metrics, leaving out ``but``."""
        return min(self._all(names, but), key=_nan_first)

    def high(self, *names: str, but: str = "") -> float:
        """Return the largest value of any seed and of any of these metrics, leaving out ``but``."""
        return -min((-value for value in self._all(names, but)), key=_nan_first)

    def mean(self, *names: str) -> float:
        """Return the mean over seeds and these metrics."""
        values = self._all(names)
        return sum(values) / len(values)

    def total(self, *names: str) -> float:
        """Return the sum over seeds and these metrics, for counts."""
        return sum(self._all(names))

    def names(self, pattern: str, but: str = "") -> list[str]:
        """Return the metrics of such a name, without those like ``but``."""
        found = [key for key in self.values if fnmatchcase(key, pattern)]
        found = [key for key in found if not fnmatchcase(key, but)]
        if not found:
            raise NotMeasuredError(f"these results hold no metric {pattern!r}")
        return found

    def __getitem__(self, name: str) -> Sequence[float]:
        """Return the values of one metric, by seed."""
        return self.values[self.names(name)[0]]

    def _all(self, patterns: Sequence[str], but: str = "") -> list[float]:
        names = [name for pattern in patterns for name in self.names(pattern, but)]
        return [value for name in names for value in self.values[name]]


def _nan_first(value: float) -> float:
    """Return what to order by, such that no NaN hides behind a number."""
    return -math.inf if math.isnan(value) else value
