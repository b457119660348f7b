"""Whether a study's numbers are the paper's: reproduced, differs (by how much), or contradicted.

This is another question than whether the study passed. A check says that a measurement can be
relied on, or that what this laboratory claims holds; a comparison says what became of a number or a
statement of the paper's, and no exit code depends on it.

* A *number* that the paper prints is reproduced if it could be one more seed of ours: ours and the
  paper's are at most half a unit of its last digit plus two standard deviations of a difference,
  ``2 std sqrt(1 + 1/n)`` over n seeds, apart (the paper's runs are of one seed, 999; of one seed of
  ours there is no deviation, and only the digit counts). Otherwise it differs.
* A *statement* is reproduced where ours lies within its limits in every seed, contradicted where it
  lies in those of the opposite, and differs in between. What is proved has no in between.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pfl_flower.run.checks import Check, Claim, Limits, Metrics

Standing = Literal["reproduced", "differs", "contradicted", "not measured"]
COLOURS: Mapping[str, str] = {
    "reproduced": "green",
    "differs": "yellow",
    "contradicted": "red",
    "not measured": "dim",
}

FIGURE = 0.02
"""How far two accuracies must be apart to be told apart in a printed figure, whose axis goes from 0
to 1: a fiftieth of the axis, about the width of a line. A figure's "nil" is less than this."""
GUESSING = 0.1
"""Accuracy of an answer drawn among ten classes."""
DIGIT = 0.01
"""Unit of the last digit that the paper's tables print."""


@dataclass(frozen=True)
class Compared:
    """What became of a number or a statement of the paper's.

    Attributes
    ----------
    what, where : str
        What it is, or is of, and the figure, table or section.
    paper, ours : str
        The paper's and ours, as text.
    standing : Standing
        The verdict.
    size : str
        Ours minus the paper's, where both are numbers.
    """

    what: str
    where: str
    paper: str
    ours: str
    standing: Standing
    size: str = ""

    def __str__(self) -> str:
        """Return the verdict with its size, and what it is on."""
        apart = f" by {self.size}" if self.size and self.standing != "reproduced" else ""
        return (
            f"{self.standing}{apart}  {self.what} ({self.where}): "
            f"ours {self.ours}, paper: {self.paper}"
        )


@dataclass(frozen=True)
class Printed:
    """A number that the paper prints, and the metric of ours that stands beside it.

    Attributes
    ----------
    what : str
        What it is a number of.
    metric : str
        Name in the results' ``metrics``.
    value : float
        As printed.
    where : str
        Figure, table or section.
    unit : float
        Of the last digit that is printed.
    """

    what: str
    metric: str
    value: float
    where: str
    unit: float = DIGIT

    def compare(self, finals: Sequence[Metrics]) -> Compared:
        """Return what became of it, from what every seed ended with.

        >>> table = Printed("idle", "accuracy", 0.55, "Table 1")
        >>> table.compare([{"accuracy": 0.31}, {"accuracy": 0.37}, {"accuracy": 0.43}]).standing
        'differs'
        """
        values = [float(final[self.metric]) for final in finals if self.metric in final]
        paper = f"{self.value:.4g}"
        if not values:
            return Compared(self.what, self.where, paper, "not measured", "not measured")
        mean = statistics.fmean(values)
        several = len(values) > 1
        finite = all(map(math.isfinite, values))
        deviation = statistics.stdev(values) if several and finite else 0.0
        allowed = self.unit / 2 + 2 * deviation * math.sqrt(1 + 1 / len(values))
        size = mean - self.value
        share = f" ({100 * size / abs(self.value):+.1f} %)" if self.value else ""
        ours = f"{mean:.4g}{f' ± {deviation:.2g}' if several else ' (one seed)'}"
        standing: Standing = "reproduced" if abs(size) <= allowed else "differs"
        return Compared(self.what, self.where, paper, ours, standing, f"{size:+.3g}{share}")


@dataclass(frozen=True, kw_only=True)
class Stated:
    """Something that the paper says or proves, and how ours would show it.

    Attributes
    ----------
    what : str
        What it says, as a clause.
    where : str
        Figure, table, theorem or section.
    claim : Claim
        Holds where ours shows the same.
    against : Limits or None
        Where ours shows the opposite; None of what is proved: wherever ``claim`` does not hold.
    paper : str
        What the paper says of the metric, in a word or a number; the claim's limits if empty.
    value : float or None
        The same as a number, if it is one.
    why : str
        Where the limits come from.
    """

    what: str
    where: str
    claim: Claim
    why: str
    against: Limits | None = None
    paper: str = ""
    value: float | None = None

    def compare(self, finals: Sequence[Metrics]) -> Compared:
        """Return what became of it, from what every seed ended with."""
        check = self._check(finals)
        if check is None:
            return Compared(self.what, self.where, self._says, "not measured", "not measured")
        worst = float(check.value)
        size = "" if self.value is None else f"{worst - self.value:+.3g}"
        standing = self._standing(check.passed, worst)
        return Compared(self.what, self.where, self._says, f"{worst:.4g}", standing, size)

    @property
    def _says(self) -> str:
        return self.paper or f"{'proved: ' if self.against is None else ''}{self.claim.limits}"

    def _check(self, finals: Sequence[Metrics]) -> Check | None:
        """Return the claim's check; None if no seed measured what it is about."""
        measured = [final for final in finals if self._measured(final)]
        return self.claim.check(measured) if measured else None

    def _measured(self, final: Metrics) -> bool:
        try:
            return bool(self.claim.measured(final))
        except (KeyError, ValueError):  # it is worked out from metrics that are not all there
            return False

    def _standing(self, held: bool, worst: float) -> Standing:
        if held:
            return "reproduced"
        refuted = True if self.against is None else self.against.admit(worst)
        return "contradicted" if refuted else "differs"


def compared(summary: Mapping[str, Any]) -> list[Compared]:
    """Return the comparisons that a ``summary.json`` keeps."""
    return [Compared(**one) for one in summary.get("paper") or ()]


def overall(found: Sequence[Compared]) -> Standing:
    """Return the verdict on all of a study's comparisons: the worst one.

    >>> one = Compared("a", "Figure 1", "0", "0.1", "differs")
    >>> overall([one, Compared("b", "Figure 2", "1", "1", "reproduced")]), overall([])
    ('differs', 'not measured')
    """
    standings = {one.standing for one in found}
    worst: tuple[Standing, ...] = ("contradicted", "differs", "reproduced")
    return next((word for word in worst if word in standings), "not measured")


def titled(claims: Sequence[Claim], title: str) -> Claim:
    """Return the claim of a title: a check that is also what the paper says."""
    (found,) = (claim for claim in claims if claim.title == title)
    return found
