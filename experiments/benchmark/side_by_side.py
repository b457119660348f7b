"""Two ways of doing the same, measured in turns in processes of their own, side by side."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.running.engines import ROOT
from pfl_flower.support.errors import RunFailedError
from pfl_flower.support.workers import THREAD_VARIABLES

WARM_UP = 2
"""First rounds of a run that are not counted: imports, caches, the first allocation."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One line of the table: what was measured against what.

    Attributes
    ----------
    key : str
        Letter of the comparison.
    what, ours, rival : str
        The work; our way and the other way of doing it, with their measurements.
    ratio : float
        The other's over ours: above 1 ours is better. Not a number where nothing is compared.
    spread : float
        Standard deviation of the ratio over repeats.
    note : str
        What else is to be known.
    """

    key: str
    what: str
    ours: str
    rival: str
    ratio: float = math.nan
    spread: float = 0.0
    note: str = ""

    @classmethod
    def of_times(
        cls,
        key: str,
        what: str,
        ours: tuple[str, Sequence[float]],
        rival: tuple[str, Sequence[float]],
        note: str = "",
    ) -> Comparison:
        """Return the row of two ways' names and seconds over repeats.

        >>> row = Comparison.of_times("b", "a round", ("here", [0.001]), ("there", [0.002]))
        >>> row.ours, row.rival, row.ratio
        ('here: 1 ms', 'there: 2 ms', 2.0)
        """
        mean, spread = ratio(rival[1], ours[1])
        said = [f"{name}: {milliseconds(seconds)}" for name, seconds in (ours, rival)]
        return cls(
            key=key, what=what, ours=said[0], rival=said[1], ratio=mean, spread=spread, note=note
        )


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How to measure.

    Attributes
    ----------
    quick : bool
        The digits instead of MNIST, fewer rounds and repeats: a look.
    device : str
        ``cpu`` or ``cuda``.
    repeats : int
        Of every comparison; the two sides take turns.
    say : callable
        Shows one line of progress.
    """

    quick: bool = False
    device: str = "cpu"
    repeats: int = 3
    say: Callable[[str], None] = lambda line: None
    points: dict[str, Any] = field(default_factory=dict)
    """Measured curves, by name, for the figure."""


def worker(case: str, *, threads: int = 0, **arguments: Any) -> dict[str, Any]:
    """Run a case of ``worker.py`` in a process of its own and return what it measured.

    It may use so many threads; 0: as many as torch takes by itself.

    Raises
    ------
    RunFailedError
        If it failed, with the last line that it said.
    """
    return fresh_process("worker", case, json.dumps(arguments), threads=threads)


def fresh_process(
    module: str, *arguments: str, threads: int = 0, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a module of this folder in a process of its own and return the JSON that it prints last.

    Raises
    ------
    RunFailedError
        If it failed, with the last line that it said.
    """
    command = [sys.executable, "-m", f"experiments.benchmark.{module}", *arguments]
    limits = dict.fromkeys(THREAD_VARIABLES, str(threads)) if threads else {}
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **limits, **(environment or {})},
    )
    if done.returncode:
        said = (done.stderr.strip() or "no output").splitlines()[-1]
        raise RunFailedError(f"benchmark, {arguments[0]}: {said}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def take_turns(
    conditions: Conditions, what: str, sides: Mapping[str, Callable[[], dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Measure every side once a repeat, one after another, so that noise meets all alike."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for repeat in range(conditions.repeats):
        for name, side in sides.items():
            conditions.say(f"{what}: {name}, {repeat + 1}/{conditions.repeats}")
            found[name].append(side())
    return found


def round_seconds(measured: Mapping[str, Any]) -> float:
    """Return the median of a run's round times after the warm-up."""
    seconds: list[float] = measured["seconds"]
    return statistics.median(seconds[min(WARM_UP, len(seconds) - 1) :])


def ratio(others: Sequence[float], ours: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation of ``other / ours`` over repeats.

    >>> ratio([2.0, 6.0], [1.0, 2.0])
    (2.5, 0.7071067811865476)
    """
    values = [other / own for other, own in zip(others, ours, strict=True)]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def both_times(
    conditions: Conditions, what: str, sides: Mapping[str, Callable[[], dict[str, Any]]]
) -> tuple[list[float], list[float]]:
    """Return our round times, which come first, and the other side's, over repeats."""
    found = take_turns(conditions, what, sides)
    ours, theirs = ([round_seconds(one) for one in found[name]] for name in sides)
    return ours, theirs


def milliseconds(seconds: Sequence[float]) -> str:
    """Return the mean as text.

    >>> milliseconds([0.001, 0.002])
    '1.5 ms'
    """
    return f"{1e3 * statistics.fmean(seconds):.3g} ms"


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that is gone afterwards."""
    return tempfile.TemporaryDirectory(prefix="pfl-benchmark-")


def output_of(folder: str) -> Path:
    """Return the only run's folder in an output folder."""
    return next(path.parent for path in Path(folder).rglob("rounds.csv"))
