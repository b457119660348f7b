"""What a verdict is: limits that a value must lie within, and the worst of all values counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pfl_flower.run.config import RunConfig
from pfl_flower.run.metrics import last_metrics

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Check:
    """One claim about a run and whether it held."""

    name: str
    value: float | str | bool
    expected: str
    passed: bool


@dataclass(frozen=True)
class Limits:
    """The interval that a value must lie in.

    Attributes
    ----------
    low, high : float
        Its ends; infinite where there is none.
    strict : bool
        Whether the ends themselves are outside.
    """

    low: float = -math.inf
    high: float = math.inf
    strict: bool = False

    def __str__(self) -> str:
        """Return what is expected, with the digits that tell 1.000001 from 1."""
        edge = "" if self.strict else "="
        if self.low == self.high:
            return f"== {self.low:.7g}"
        if self.low == -math.inf:
            return f"<{edge} {self.high:.7g}"
        if self.high == math.inf:
            return f">{edge} {self.low:.7g}"
        return f"in [{self.low:.7g}, {self.high:.7g}]"

    def admit(self, value: float) -> bool:
        """Return whether the value lies within; what is not a number does not."""
        if self.strict:
            return self.low < value < self.high
        return self.low <= value <= self.high

    def worst(self, values: Iterable[float]) -> float:
        """Return the value that is hardest to admit: not a number if one of them is, or none is.

        >>> between(0, 1).worst([0.5, 0.1, 0.8]), at_most(1).worst([0.5, 0.1, 0.8])
        (0.1, 0.8)
        """
        found = list(values)
        if not found or any(math.isnan(value) for value in found):
            return math.nan
        least, most = min(found), max(found)
        if self.low == -math.inf or self.high == math.inf:
            return most if self.low == -math.inf else least
        return most if self.high - most < least - self.low else least

    def check(self, name: str, values: Iterable[float]) -> Check:
        """Return whether all values lie within; shown is the worst of them.

        >>> check = at_most(0.2).check("miss", [0.1, 0.3])
        >>> check.value, check.expected, check.passed
        (0.3, '<= 0.2', False)
        """
        worst = self.worst(values)
        return Check(name, worst, str(self), self.admit(worst))


def at_most(high: float) -> Limits:
    """``value <= high``."""
    return Limits(high=high)


def below(high: float) -> Limits:
    """``value < high``."""
    return Limits(high=high, strict=True)


def at_least(low: float) -> Limits:
    """``value >= low``."""
    return Limits(low=low)


def above(low: float) -> Limits:
    """``value > low``."""
    return Limits(low=low, strict=True)


def exactly(value: float) -> Limits:
    """``value == value``."""
    return Limits(value, value)


def between(low: float, high: float) -> Limits:
    """``low <= value <= high``."""
    return Limits(low, high)


@dataclass(frozen=True)
class Claim:
    """That a metric lies within limits in every seed.

    Attributes
    ----------
    metric : str or callable
        Its name, or what works it out from a seed's metrics. A metric of several cases,
        ``metric: case``, counts in every case that a seed has.
    limits : Limits
        What it must lie within.
    name : str
        Of the check; the metric's if empty.
    average : bool
        Whether the mean over all seeds and cases is meant rather than the worst of them.
    some : bool
        Whether it is enough that some seeds measured it.

    Examples
    --------
    >>> Claim("gap", below(1)).check([{"gap: a": 0.5, "gap: b": 0.7}, {"gap: a": 0.6}])
    Check(name='gap', value=0.7, expected='< 1', passed=True)
    """

    metric: str | Callable[[Metrics], float]
    limits: Limits
    name: str = ""
    average: bool = False
    some: bool = False

    def check(self, finals: Sequence[Metrics]) -> Check:
        """Return the check on what every seed ended with; a metric that one lacks fails."""
        measured = [self.measured(final) for final in finals]
        if self.some:
            measured = [values for values in measured if values]
        values = [value for seed in measured for value in seed or [math.nan]]
        if self.average and values:
            values = [sum(values) / len(values)]
        return self.limits.check(self.title, values)

    @property
    def title(self) -> str:
        """The check's name."""
        return self.name or str(self.metric)

    def measured(self, final: Metrics) -> list[float]:
        """Return what a seed measured of the metric, a value for each case."""
        if callable(self.metric):
            return [self.metric(final)]
        if self.metric in final:
            return [float(final[self.metric])]
        return [float(value) for key, value in final.items() if key.startswith(f"{self.metric}: ")]


def honest_checks(rows: list[dict[str, float]], *, site: bool = False) -> list[Check]:
    """Return that the honest users took part: each of those who were asked, and some each round.

    A report that was judged implausible was one. Where nobody honest was asked nothing is checked.
    At a site one participant's silence decides nothing: it is among what was left out.
    """
    asked = [row for row in rows if row.get("honest_reports", 0) + row.get("honest_missing", 0)]
    if not asked:
        return []
    deserted = sum(not row["honest_reports"] for row in asked)
    found = [exactly(0).check("rounds_without_honest_reports", [deserted])]
    if not site:
        unheard = rows[-1].get("honest_unheard", math.nan)
        found.append(exactly(0).check("honest_users_never_heard", [unheard]))
    return found


def sanity_checks(config: RunConfig, rows: list[dict[str, float]]) -> list[Check]:
    """Return what must hold of any run.

    All rounds done, rho finite, the honest users heard, solves within their tolerance.
    """
    final = last_metrics(rows)
    norm = final["norm_rho"]
    checks = [
        exactly(config.rounds).check("rounds", [rows[-1]["round"]]),
        Check("finite", norm, "finite", math.isfinite(norm)),
        *honest_checks(rows, site=config.site),
    ]
    if config.local_solver == "exact" and not config.site:
        checks.append(exactly(0).check("unconverged_total", [final["unconverged_total"]]))
    return checks
