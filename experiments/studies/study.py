"""A study: something measured once per seed, judged over all seeds, and drawn."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from experiments.running.options import Options
from experiments.running.preset_runs import may_keep
from experiments.studies.catalogue import STUDIES
from experiments.studies.wording import Measured
from pfl_flower.run.checks import Check, Claim
from pfl_flower.run.problem import choose_device
from pfl_flower.run.results import summarise, write_json
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.versions import commit

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
    """

    seed: int
    quick: bool = False
    control: bool = False
    folder: Path = field(default_factory=Path.cwd)
    options: Options = field(default_factory=Options)
    say: Callable[[str], None] = lambda line: None


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
    """

    what: str
    metric: str
    value: float
    where: str


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
        From the results of all seeds to the checks that depend on what was measured, if any do.
    has_runs : bool
        Whether the measuring runs whole configurations, so that run-config keys can be set.
    claim : str
        What is claimed, by the paper unless it says otherwise: a sentence or two for a visitor.
    words : callable
        From the metrics of all seeds to what was measured, in as few words. Numbers come from
        the metrics alone, and the sentence is true of any: it says "0.9 %", never "fails".
    setting : str
        A sentence or two: data, users, steps, what is drawn.
    printed : tuple of Printed
        The paper's numbers.
    """

    name: str
    measure: Callable[[Setting], dict[str, Any]]
    draw: Callable[[Sequence[Result], Path], object]
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    success: tuple[Claim, ...] = ()
    always: tuple[Claim, ...] = ()
    judge: Callable[[Sequence[Result]], list[Check]] = lambda results: []
    has_runs: bool = False
    claim: str = ""
    words: Callable[[Measured], str] = lambda measured: ""
    setting: str = ""
    printed: tuple[Printed, ...] = ()

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
        finals = [result["metrics"] for result in results]
        claimed = [claim.check(finals) for claim in (*self.success, *self.always)]
        return [*claimed, *self.judge(results)]


def find_study(name: str) -> Study:
    """Return the study of a name in the catalogue."""
    module, _, attribute = STUDIES[name].place.partition(":")
    found: Study = getattr(importlib.import_module(module), attribute)
    return found


def run_study(study: Study, options: Options, console: Console) -> dict[str, Any]:
    """Measure every seed, judge, draw; write and return the summary.

    Raises
    ------
    ConfigError
        If run-config keys are set for a study that has none, or a control is asked of one in which
        nobody attacks.
    """
    if options.control and not study.success:
        raise ConfigError(f"--control: expected a study of an attack, and {study.name} has none")
    if not study.has_runs and (options.settings or options.rounds or options.nodes):
        raise ConfigError(f"NAME = {study.name}: expected no --set, --rounds or --nodes")
    folder = options.output / study.name
    seeds = options.seeds or (study.seeds[:1] if options.quick else study.seeds)
    results = [_measured(study, seed, folder / f"seed-{seed}", options, console) for seed in seeds]
    checks = study.checks(results)
    summary = summarise(
        experiment=study.name,
        config=_asked(options),
        seeds=seeds,
        finals=[result["metrics"] for result in results],
        checks=checks,
        device=str(choose_device(options.device)),
        seconds=sum(result["seconds"] for result in results),
        extra={
            "commits": [result["commit"] for result in results],
            "title": study.title,
            "success": study.must_fail,
            "control": options.control,
        },
    )
    if options.control:
        missed = [check for check in checks if check.name in study.must_fail]
        summary["passed"] = not any(check.passed for check in missed)
    study.draw(results, folder)
    write_json(folder / "summary.json", summary)
    return summary


def _measured(
    study: Study, seed: int, folder: Path, options: Options, console: Console
) -> dict[str, Any]:
    """Return the seed's result, kept from before if the same code made it when asked the same."""
    path, asked = folder / "result.json", {**_asked(options), "seed": seed}
    kept = _kept(path, asked, options)
    if kept is not None:
        console.print(f"{study.name}, seed {seed}: kept from before")
        return kept
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"{study.name}, seed {seed}")

        def say(line: str) -> None:
            bar.update(task, description=f"{study.name}, seed {seed}: {line}")

        began = time.perf_counter()
        setting = Setting(
            seed=seed,
            quick=options.quick,
            control=options.control,
            folder=folder,
            options=options,
            say=say,
        )
        result = study.measure(setting)
    seconds = time.perf_counter() - began
    console.print(f"{study.name}, seed {seed}: {seconds:.1f} s")
    written = {**result, "asked": asked, "commit": commit(), "seconds": round(seconds, 3)}
    write_json(path, written)
    return json_form(written)


def json_form(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result as it would be read back: tuples as lists, keys as text."""
    read: dict[str, Any] = json.loads(json.dumps(result, default=float))
    return read


def _kept(path: Path, asked: Mapping[str, Any], options: Options) -> dict[str, Any] | None:
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return kept if kept.get("asked") == json_form(asked) and may_keep(kept, options) else None


def _asked(options: Options) -> dict[str, Any]:
    """Return the options that change what is measured."""
    asked = asdict(options)
    kept = ("engine", "device", "rounds", "nodes", "settings", "quick", "control")
    return {key: asked[key] for key in kept}
