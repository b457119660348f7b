"""A study: something measured once per seed, judged over all seeds, and drawn."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.running.options import Options
from experiments.studies.catalogue import STUDIES
from experiments.studies.standing import Compared, Printed, Stated
from experiments.studies.wording import Measured
from pfl_flower.run.checks import Check, Claim, Metrics
from pfl_flower.run.keys import Scalar

Result = Mapping[str, Any]
"""What one seed measured, as JSON: ``metrics``, a mapping of numbers, and whatever is drawn."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a study is asked to measure.

    Attributes
    ----------
    seed : int
        Of every random draw.
    quick : bool
        Smaller sizes, for a look and for tests; the checks stay the same.
    control : bool
        The strategic user does nothing (or the honest user answers at random): what shows that
        the checks can fail.
    folder : Path
        Where this seed may keep files.
    options : Options
        The command line's, for studies that run whole configurations.
    say : callable
        Shows one line of progress.
    tell : callable
        Prints a line that stays.
    """

    seed: int
    quick: bool = False
    control: bool = False
    folder: Path = field(default_factory=Path.cwd)
    options: Options = field(default_factory=Options)
    say: Callable[[str], None] = lambda line: None
    tell: Callable[[str], None] = lambda line: None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A claim, how it is measured, and when it counts as shown.

    Attributes
    ----------
    name : str
        Name on the command line and in the catalogue, which says what it shows.
    measure : callable
        From a setting to the seed's result.
    draw : callable
        Writes figures from the results of all seeds into a folder.
    seeds : tuple of int
        Run when none are named; only the first of them in the quick form.
    success : tuple of Claim
        What the attack (or the honest data) makes hold: in the control each of them must fail.
    always : tuple of Claim
        What holds whether anybody attacks or not.
    judge : callable
        From the metrics of all seeds to the checks that depend on what was measured, if any do.
    has_runs : bool
        Whether the measuring runs whole configurations, so that run-config keys can be set.
    brought : frozenset of str
        Keys of what must be brought along, and options of its own, which may be set without making
        it another study.
    folder : mapping
        Settings of its own that the name of its folder says.
    claim : str
        What is claimed, by the paper unless it says otherwise: a sentence or two for a visitor.
    words : callable
        From the metrics of all seeds to what was measured, in as few words. Numbers come from
        the metrics alone, and the sentence is true of any: it says "0.9 %", never "fails".
    setting : str
        A sentence or two: data, users, steps, what is drawn.
    paper : tuple of Printed or Stated
        What the paper prints or says of this, and what ours must be to be the same.
    """

    name: str
    measure: Callable[[Setting], dict[str, Any]]
    draw: Callable[[Sequence[Result], Path], object]
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    success: tuple[Claim, ...] = ()
    always: tuple[Claim, ...] = ()
    judge: Callable[[Sequence[Metrics]], list[Check]] = lambda finals: []
    has_runs: bool = False
    brought: frozenset[str] = frozenset()
    folder: Mapping[str, Scalar] = field(default_factory=dict)
    claim: str = ""
    words: Callable[[Measured], str] = lambda measured: ""
    setting: str = ""
    paper: tuple[Printed | Stated, ...] = ()

    @property
    def title(self) -> str:
        """One line of what it shows."""
        return STUDIES[self.name].title

    @property
    def must_fail(self) -> tuple[str, ...]:
        """Names of the checks that fail in the control, in which nobody attacks."""
        return tuple(claim.title for claim in self.success)

    def checks(self, results: Sequence[Result]) -> list[Check]:
        """Return all checks, those of success first."""
        return self.checks_of([result["metrics"] for result in results])

    def checks_of(self, finals: Sequence[Metrics]) -> list[Check]:
        """Return all checks from each seed's metrics."""
        claimed = [claim.check(finals) for claim in (*self.success, *self.always)]
        return [*claimed, *self.judge(finals)]

    def compare(self, finals: Sequence[Metrics]) -> list[Compared]:
        """Return what became of the paper's numbers and statements, from each seed's metrics."""
        return [one.compare(finals) for one in self.paper]


def find_study(name: str) -> Study:
    """Return the study of a name in the catalogue."""
    module, _, attribute = STUDIES[name].place.partition(":")
    found: Study = getattr(importlib.import_module(module), attribute)
    return found
