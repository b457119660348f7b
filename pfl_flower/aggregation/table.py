"""The aggregation rules by name: what the server can make of the rows of a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from pfl_flower.support.extensions import Extension, Refusal, Table
from pfl_flower.support.options import Options, parse_options
from pfl_flower.support.run_settings import RunSettings

ROOM = "pfl_flower.aggregation"
RULES = f"{ROOM}.rules"


class GeometricMedianOptions(Options):
    """Of the smoothed Weiszfeld iteration."""

    smoothing: float = Field(
        1e-4, gt=0, description="radius within which it is rounded off, relative to the spread"
    )
    steps: int = Field(1000, ge=1, description="most steps")


class CentredClippingOptions(Options):
    """Of the clipped steps."""

    clippings: int = Field(3, ge=1, description="steps from the coordinate-wise median")


class ThenOptions(Options):
    """Of a rule that hands its rows to another one."""

    then: str = Field("sum", description="the rule that is given these rows")

    @field_validator("then")
    @classmethod
    def known(cls, value: str) -> str:
        """Refuse what is no rule of rows alone, or hands its rows on itself."""
        names = [name for name, row in AGGREGATIONS.items() if not row.hands_on and not row.rounds]
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return value


class AdaptiveClippingOptions(ThenOptions):
    """Of clipping to a length that the rows say."""

    then: str = Field("trimmed-mean", description="the rule that is given these rows")


class RegularisedMedianOptions(Options):
    """Of the quadratically regularised median."""

    influence: float | None = Field(
        None, gt=0, description="most that one row adds; null: the rows' median length"
    )
    steps: int = Field(1000, ge=1, description="most steps")


class BucketingOptions(ThenOptions):
    """Of means of a few."""

    size: int = Field(2, ge=1, description="users in a bucket")
    then: str = Field("trimmed-mean", description="the rule that is given the buckets' means")


class HistoryClippingOptions(Options):
    """Of clipping about the last round's end."""

    beta: float = Field(0.9, ge=0, lt=1, description="how much of its past a momentum keeps")
    clippings: int = Field(1, ge=1, description="steps a round")


class TrustOptions(Options):
    """Of the server's own user."""

    points: int = Field(100, ge=1, description="that the server holds")


class SpectralOptions(Options):
    """Of leaving out rows that stick out."""

    share: float = Field(1.0, gt=0, le=1, description="of f that is left out, rounded down")


def _buckets(rows: int, chosen: Mapping[str, Any]) -> int:
    return -(-rows // int(chosen["size"]))


def _all(rows: int, chosen: Mapping[str, Any]) -> int:
    return rows


@dataclass(frozen=True, kw_only=True)
class AggregationExtension(Extension):
    """A rule.

    Attributes
    ----------
    plain : bool
        Whether it is the sum of all rows, under which it is known where a run leads.
    slack : int or None
        What n users must exceed ``share`` f by, for f of them to be withstood; None where the rule
        names no f.
    share : int
        How many users there must be for each of the f.
    cap : int or None
        The most f whatever n, because of the time that the rule takes.
    rounds : bool
        Whether it is a class with ``init`` and ``update``, which sees users and rounds.
    root : bool
        Whether it asks for points of the server's own.
    left : callable
        From n and the options to the number of rows that the rule in ``then`` is given.
    """

    plain: bool = False
    slack: int | None = None
    share: int = 2
    cap: int | None = None
    rounds: bool = False
    root: bool = False
    left: Callable[[int, Mapping[str, Any]], int] = _all

    @property
    def bound(self) -> str:
        """The condition on f and n, in letters; empty if there is none."""
        if self.slack is None:
            return "that of `then`" if self.hands_on else ""
        most = "" if self.cap is None else f", f <= {self.cap}"
        also = ", and that of `then`" if self.hands_on else ""
        return f"{self.share}f{f' + {self.slack}' if self.slack else ''} < n{most}{also}"

    @property
    def hands_on(self) -> bool:
        """Whether the rule hands its rows to another one."""
        return "then" in self.options.model_fields

    def most(self, rows: int) -> int | None:
        """Return the largest f of the rule by itself among so many rows, None if it names none."""
        if self.slack is None:
            return None
        most = (rows - self.slack - 1) // self.share
        return most if self.cap is None else min(most, self.cap)


MIXED = "aggregation-mixing"
MIXING_SLACK = 0
"""Mixing averages each row with its n - f nearest: 2 f < n."""


def most_tolerated(name: str, rows: int, *, mixing: bool = False, options: str = "") -> int | None:
    """Return the largest f of a rule among so many rows, None where it names none.

    Below 0 if they are too few for any f. ``options`` are those of the rule, JSON.

    >>> most_tolerated("trimmed-mean", 11), most_tolerated("krum", 11), most_tolerated("sum", 11)
    (5, 4, None)
    >>> most_tolerated("static-clipping", 11, options='{"then": "bulyan"}')
    2
    """
    row = AGGREGATIONS.row(name)
    limits = [row.most(rows), (rows - MIXING_SLACK - 1) // 2 if mixing else None]
    if row.hands_on:
        fields = row.options.model_fields
        chosen = {key: field.default for key, field in fields.items()}
        chosen |= parse_options(f"{AGGREGATIONS.point}-options", options, row.options)
        limits.append(most_tolerated(chosen["then"], row.left(rows, chosen)))
    return min((limit for limit in limits if limit is not None), default=None)


def _most(settings: RunSettings, rows: int) -> int | None:
    mixing, options = settings.aggregation_mixing, settings.aggregation_options
    return most_tolerated(settings.aggregation, rows, mixing=mixing, options=options)


def names_f(settings: RunSettings) -> bool:
    """Return whether f means anything to the run's aggregation: one of one's own may ask for it."""
    own = AGGREGATIONS.row(settings.aggregation) is AGGREGATIONS.own
    return own or _most(settings, settings.users) is not None


def lowered(settings: RunSettings, rows: int) -> list[str]:
    """Return what a rule had to lower because no more than ``rows`` reports counted in a round."""
    name, f = settings.aggregation, settings.tolerance()
    most = _most(settings, rows)
    found = []
    if most is not None and f > most:
        found.append(f"{LOWERED}f-{max(0, most)}")
    if "krum-selected" in AGGREGATIONS.row(name).reads and settings.krum_selected > rows:
        found.append(f"{LOWERED}krum-selected-{rows}")
    return found


MOST_SEARCHED = 10_000
"""Users beyond which no number is named that an aggregation would need: f is too large, then."""
LOWERED = "lowered-"
"""How the notices of a round begin that say to what a rule lowered its f, or another number."""


def admits_tolerance(settings: RunSettings) -> Refusal | None:
    """Refuse an f that is more than the rule can withstand among those asked in a round."""
    asked, f = settings.sample_size(), settings.tolerance()
    most = _most(settings, asked)
    if most is None or f <= most:
        return None
    if most < 0 or (most < 1 and settings.aggregation_tolerance == ""):
        name, options = settings.aggregation, settings.aggregation_options
        needed = rows_needed(name, f, mixing=settings.aggregation_mixing, options=options)
        if needed is not None:
            return _more_users(settings, needed, f"an aggregation that withstands {f}")
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


def rows_needed(name: str, f: int, *, mixing: bool = False, options: str = "") -> int | None:
    """Return the least number of rows among which a rule withstands f; None if none is enough.

    >>> rows_needed("krum", 2), rows_needed("sum", 2), rows_needed("mda", 13)
    (7, 1, None)
    """
    for rows in range(1, MOST_SEARCHED):
        most = most_tolerated(name, rows, mixing=mixing, options=options)
        if most is None or most >= f:
            return rows
    return None


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
        "bulyan": AggregationExtension(
            factory=f"{ROOM}.selection:bulyan",
            text="k times the mean of what is nearest to the middle of k - 2f rows that Krum takes",
            source="El Mhamdi et al. 2018",
            slack=2,
            share=4,
            admits=admits_tolerance,
        ),
        "mda": AggregationExtension(
            factory=f"{ROOM}.selection:least_diameter",
            text="k times the mean of the k - f rows of least diameter",
            source="El Mhamdi et al. 2020",
            slack=0,
            cap=12,
            admits=admits_tolerance,
        ),
        "qrmed": AggregationExtension(
            factory=f"{ROOM}.regularised_median:regularised_median",
            text="k times the quadratically regularised median: no row adds more than influence",
            source="Allouah et al. 2024",
            options=RegularisedMedianOptions,
            admits=admits_tolerance,
        ),
        "static-clipping": AggregationExtension(
            factory=f"{ROOM}.clipping:clipped",
            text="another rule of the rows cut to the length clipping-radius",
            source="Sun et al. 2019",
            options=ThenOptions,
            reads=("clipping-radius",),
            admits=admits_tolerance,
        ),
        "adaptive-clipping": AggregationExtension(
            factory=f"{ROOM}.clipping:adaptively_clipped",
            text="another rule of the rows, the 2f (k - f)/k longest cut to the next one's length",
            source="Allouah et al. 2025",
            slack=0,
            options=AdaptiveClippingOptions,
            admits=admits_tolerance,
        ),
        "bucketing": AggregationExtension(
            factory=f"{ROOM}.bucketing:Bucketing",
            text="another rule of the means of size users each, dealt anew every round",
            source="Karimireddy et al. 2022",
            options=BucketingOptions,
            left=_buckets,
            rounds=True,
            admits=admits_tolerance,
        ),
        "dnc": AggregationExtension(
            factory=f"{ROOM}.spectral:DivideAndConquer",
            text="k times the mean of the k - f rows that stick out least where rows differ most",
            source="Shejwalkar and Houmansadr 2021",
            slack=0,
            options=SpectralOptions,
            rounds=True,
            admits=admits_tolerance,
        ),
        "fltrust": AggregationExtension(
            factory=f"{ROOM}.trust:Trust",
            text="k times the mean of rows as long as the server's own, weighted by likeness to it",
            source="Cao et al. 2021",
            options=TrustOptions,
            rounds=True,
            root=True,
            admits=admits_tolerance,
        ),
        "history-clipping": AggregationExtension(
            factory=f"{ROOM}.history:HistoryClipping",
            text="k times the last round's centre, moved by the users' clipped momenta",
            source="Karimireddy et al. 2021",
            options=HistoryClippingOptions,
            reads=("clipping-radius",),
            rounds=True,
            admits=admits_tolerance,
        ),
    },
    own=AggregationExtension(text="a function as package.module:name", admits=admits_tolerance),
    passed=("rows",),
    keyed={"tolerance": "aggregation-tolerance"},
)
"""From the k accepted rows ``(k, d)``, ordered by user, to the direction ``(d,)`` of descent."""
