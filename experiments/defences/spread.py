"""What the seeds say of a ranking: least and most of each number, and a rule's place in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean

from experiments.defences.judgement import Verdict
from experiments.defences.tables import averaged, shown, verdicts
from experiments.studies.study import Result

Found = Mapping[str, Sequence[Verdict]]
"""By rule what is said of it in each seed."""
COLUMNS: Sequence[tuple[str, Callable[[Verdict], float], int]] = (
    ("lost: cost and worst harm", lambda said: said.lost, 3),
    ("cost", lambda said: said.cost, 3),
    ("worst harm", lambda said: said.harm, 3),
    ("share of the way", lambda said: said.share, 2),
    ("of the untold", lambda said: said.untold_share, 2),
    ("worst harm to theta_n", lambda said: said.theta_harm, 3),
    ("worst user under attack", lambda said: said.worst, 2),
)
HEAD = ("rule", "place in each seed", *(name for name, _, _ in COLUMNS))


def of_seeds(results: Sequence[Result], scene: str) -> list[tuple[str, ...]]:
    """Return the rows under ``HEAD``, the least lost first, as in the table of means."""
    return rows(verdicts(results, scene))


def rows(found: Found) -> list[tuple[str, ...]]:
    """Return the rows of rules that were measured for the same seeds."""
    means = {rule: averaged(ones).lost for rule, ones in found.items()}
    seeds = len(next(iter(found.values())))
    places = [_places({rule: ones[i].lost for rule, ones in found.items()}) for i in range(seeds)]
    return [
        (rule, ", ".join(str(of[rule]) for of in places), *_numbers(found[rule]))
        for rule in sorted(means, key=lambda rule: means[rule])
    ]


def _places(lost: Mapping[str, float]) -> dict[str, int]:
    """Return a rule's place: how many lose less, and one; equal rules share it.

    >>> _places({"a": 0.2, "b": 0.1, "c": 0.2})
    {'a': 2, 'b': 1, 'c': 2}
    """
    rounded = {rule: round(value, 9) for rule, value in lost.items()}
    return {rule: 1 + sum(o < mine for o in rounded.values()) for rule, mine in rounded.items()}


def _numbers(ones: Sequence[Verdict]) -> Iterator[str]:
    for _, of, digits in COLUMNS:
        values = [of(one) for one in ones]
        ends = shown(min(values), digits), shown(max(values), digits)
        yield f"{shown(fmean(values), digits)} ({' to '.join(ends)})"
