"""The aggregation rules by name: what the server can make of the rows of a round."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from pfl_flower.support.extensions import Extension, Refusal, Table
from pfl_flower.support.options import Options
from pfl_flower.support.run_settings import RunSettings

RULES = "pfl_flower.aggregation.rules"


class GeometricMedianOptions(Options):
    """Of the smoothed Weiszfeld iteration."""

    smoothing: float = Field(
        1e-4, gt=0, description="radius within which it is rounded off, relative to the spread"
    )
    steps: int = Field(1000, ge=1, description="most steps")


class CentredClippingOptions(Options):
    """Of the clipped steps."""

    clippings: int = Field(3, ge=1, description="steps from the coordinate-wise median")


@dataclass(frozen=True, kw_only=True)
class AggregationExtension(Extension):
    """A rule.

    Attributes
    ----------
    plain : bool
        Whether it is the sum of all rows, under which it is known where a run leads.
    slack : int or None
        What n users must exceed 2 f by, for f of them to be withstood; None where the rule names
        no f.
    """

    plain: bool = False
    slack: int | None = None

    @property
    def bound(self) -> str:
        """The condition on f and n, in letters; empty if there is none."""
        return "" if self.slack is None else f"2f{f' + {self.slack}' if self.slack else ''} < n"


MIXED = "aggregation-mixing"
MIXING_SLACK = 0
"""Mixing averages each row with its n - f nearest: 2 f < n."""


def _slack(name: str, mixing: bool) -> int | None:
    slacks = [AGGREGATIONS.row(name).slack, MIXING_SLACK if mixing else None]
    return max((slack for slack in slacks if slack is not None), default=None)


def most_tolerated(name: str, rows: int, *, mixing: bool = False) -> int | None:
    """Return the largest f of a rule among so many rows, None where it names none.

    Below 0 if they are too few for any f.

    >>> most_tolerated("trimmed-mean", 11), most_tolerated("krum", 11), most_tolerated("sum", 11)
    (5, 4, None)
    """
    slack = _slack(name, mixing)
    return None if slack is None else (rows - slack - 1) // 2


def names_f(settings: RunSettings) -> bool:
    """Return whether f means anything to the run's aggregation: one of one's own may ask for it."""
    own = AGGREGATIONS.row(settings.aggregation) is AGGREGATIONS.own
    return own or _slack(settings.aggregation, settings.aggregation_mixing) is not None


def lowered(settings: RunSettings, rows: int) -> list[str]:
    """Return what a rule had to lower because no more than ``rows`` reports counted in a round."""
    name, f = settings.aggregation, settings.tolerance()
    most = most_tolerated(name, rows, mixing=settings.aggregation_mixing)
    found = []
    if most is not None and f > most:
        found.append(f"{LOWERED}f-{max(0, most)}")
    if "krum-selected" in AGGREGATIONS.row(name).reads and settings.krum_selected > rows:
        found.append(f"{LOWERED}krum-selected-{rows}")
    return found


LOWERED = "lowered-"
"""How the notices of a round begin that say to what a rule lowered its f, or another number."""


def admits_tolerance(settings: RunSettings) -> Refusal | None:
    """Refuse an f that is more than the rule can withstand among those asked in a round."""
    asked, f = settings.sample_size(), settings.tolerance()
    most = most_tolerated(settings.aggregation, asked, mixing=settings.aggregation_mixing)
    if most is None or f <= most:
        return None
    if most < 0 or (most < 1 and settings.aggregation_tolerance == ""):
        slack = _slack(settings.aggregation, settings.aggregation_mixing) or 0
        return _more_users(settings, 2 * f + slack + 1, f"an aggregation that withstands {f}")
    allowed = f"0 to {most}" if most else "0"
    right = f"{allowed}, for {_those(settings)} and this aggregation"
    stands = f"; empty stands for {f}" if settings.aggregation_tolerance == "" else ""
    return Refusal("aggregation-tolerance", right + stands)


def admits_selection(settings: RunSettings) -> Refusal | None:
    """Refuse more rows than there are without f."""
    left, f = settings.sample_size() - settings.tolerance(), settings.tolerance()
    if settings.krum_selected > left > 0:
        right = f"at most {left}, for {_those(settings)}, of whom {f} may be strategic"
        return Refusal("krum-selected", right)
    return admits_tolerance(settings)


def _those(settings: RunSettings) -> str:
    users, asked = settings.users, settings.sample_size()
    return f"{users} users" if asked == users else f"the {asked} of {users} users asked in a round"


def _more_users(settings: RunSettings, needed: int, what: str) -> Refusal:
    """Return that more users must be there, or be asked."""
    if needed > settings.users:
        return Refusal("users", f"at least {needed}, for {what} of them")
    share = f"{needed / settings.users:.6g}"
    right = f"at least {share}, so that {needed} of {settings.users} users are asked in a round"
    return Refusal("participation", f"{right}, for {what} of them")


AGGREGATIONS: Table[AggregationExtension] = Table(
    "aggregation",
    {
        "sum": AggregationExtension(
            factory="pfl_flower.aggregation.combination:total",
            text="the sum of the rows",
            source="the paper",
            plain=True,
            admits=admits_tolerance,
        ),
        "median": AggregationExtension(
            factory=f"{RULES}:median",
            text="k times the middle value of each coordinate",
            source="Yin et al. 2018",
            admits=admits_tolerance,
        ),
        "trimmed-mean": AggregationExtension(
            factory=f"{RULES}:trimmed_mean",
            text="k times the mean without the f largest and the f smallest of each coordinate",
            source="Yin et al. 2018",
            slack=0,
            admits=admits_tolerance,
        ),
        "geometric-median": AggregationExtension(
            factory=f"{RULES}:geometric_median",
            text="k times the point with the least sum of distances, by smoothed Weiszfeld steps",
            source="Pillutla et al. 2022",
            options=GeometricMedianOptions,
            admits=admits_tolerance,
        ),
        "krum": AggregationExtension(
            factory=f"{RULES}:krum",
            text="k times the row with the nearest k - f - 2 others",
            source="Blanchard et al. 2017",
            slack=2,
            admits=admits_tolerance,
        ),
        "multi-krum": AggregationExtension(
            factory=f"{RULES}:multi_krum",
            text="k times the mean of the krum-selected rows (k - f) that krum finds best",
            source="Blanchard et al. 2017",
            slack=2,
            reads=("krum-selected",),
            admits=admits_selection,
        ),
        "centred-clipping": AggregationExtension(
            factory=f"{RULES}:centred_clipping",
            text="k times the median, moved by the mean of the clipped differences, three times",
            source="Karimireddy et al. 2021",
            options=CentredClippingOptions,
            reads=("clipping-radius",),
            admits=admits_tolerance,
        ),
    },
    own=AggregationExtension(text="a function as package.module:name", admits=admits_tolerance),
    passed=("rows",),
    keyed={"tolerance": "aggregation-tolerance"},
)
"""From the k accepted rows ``(k, d)``, ordered by user, to the direction ``(d,)`` of descent."""
