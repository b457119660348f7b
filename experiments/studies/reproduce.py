"""Run many studies one after another: what one of them does never stops the next."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from experiments.running.options import Options
from experiments.studies.catalogue import check_names
from experiments.studies.judging import judge_again
from experiments.studies.measuring import check_replaceable, run_study
from experiments.studies.standing import COLOURS as STANDING_COLOURS
from experiments.studies.standing import compared
from experiments.studies.study import find_study
from pfl_flower.support.console import plain
from pfl_flower.support.files import replace_file
from pfl_flower.support.foreign_text import legible, one_line

ERROR_FILE = "error.txt"
"""In a study's folder: why its last run broke off, in one line, and the traceback."""

Verdict = Literal["passed", "FAILED", "error"]
COLOURS: Mapping[Verdict, str] = {"passed": "green", "FAILED": "red", "error": "bold red"}


@dataclass(frozen=True)
class StudyOutcome:
    """How one study ended.

    Attributes
    ----------
    name : str
        The study.
    verdict : {"passed", "FAILED", "error"}
        ``FAILED`` if a check did, ``error`` if it was not measured to the end.
    seconds : float
        Of this run; seeds kept from before take none.
    reason : str
        One line: the failed checks, or the error. Empty if it passed.
    standing : str
        How its numbers stand to the paper's; empty where that was not judged.
    apart : tuple of str
        What is not as in the paper, a line each.
    """

    name: str
    verdict: Verdict
    seconds: float
    reason: str = ""
    standing: str = ""
    apart: tuple[str, ...] = ()


def reproduce(
    names: Sequence[str], options: Options, console: Console, *, judge: bool = False
) -> list[StudyOutcome]:
    """Run the named studies and return how each ended; finished seeds are kept, as ever.

    A table of the outcomes ends the run, also one that was interrupted. With ``judge`` nothing is
    measured: the numbers that are there are judged by the claims as they stand.

    Raises
    ------
    ConfigError
        If a name is no study's, or the quick form would replace full results: before anything
        is run.
    """
    check_names(names)
    for name in [] if judge else names:
        check_replaceable(find_study(name), options)
    # Not started: only one live display is allowed at a time, and each study has its own.
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    task = bar.add_task("", total=len(names))
    outcomes: list[StudyOutcome] = []
    try:
        for name in names:
            bar.update(task, description=name, completed=len(outcomes))
            console.print(bar.get_renderable())
            outcomes.append(_run(name, options, console, judge))
    finally:
        console.print(_table(outcomes, len(names)))
        for outcome in outcomes:
            for line in outcome.apart:
                console.print(plain(f"{outcome.name}: {line}"))
    return outcomes


def _run(name: str, options: Options, console: Console, judge: bool) -> StudyOutcome:
    began = time.perf_counter()
    trace = options.output / name / ERROR_FILE
    try:
        if judge:
            summary = judge_again(find_study(name), options.output)
        else:
            trace.unlink(missing_ok=True)
            summary = run_study(find_study(name), options, console)
    except Exception as error:
        with contextlib.suppress(OSError):
            _keep(trace, error)
        return StudyOutcome(name, "error", time.perf_counter() - began, one_line(error))
    passed = bool(summary["passed"])
    return StudyOutcome(
        name=name,
        verdict="passed" if passed else "FAILED",
        seconds=time.perf_counter() - began,
        reason="" if passed else _missed(summary),
        standing=summary["standing"],
        apart=tuple(str(one) for one in compared(summary) if one.standing != "reproduced"),
    )


def _keep(trace: Path, error: Exception) -> None:
    replace_file(trace, f"{one_line(error)}\n\n{legible(traceback.format_exc())}")


def _missed(summary: Mapping[str, Any]) -> str:
    checks = summary["checks"]
    if summary.get("control"):
        wrong = [c["name"] for c in checks if c["passed"] and c["name"] in summary["success"]]
        return f"passed in the control: {'; '.join(wrong)}"
    return "; ".join(check["name"] for check in checks if not check["passed"])


def _table(outcomes: Sequence[StudyOutcome], total: int) -> Table:
    passed = sum(outcome.verdict == "passed" for outcome in outcomes)
    table = Table(title=f"{passed} of {total} passed", show_footer=True)
    table.add_column("study", footer=f"{len(outcomes)} of {total} run", overflow="fold")
    table.add_column("result", no_wrap=True)
    table.add_column("the paper's", no_wrap=True)
    table.add_column(
        "seconds", f"{sum(outcome.seconds for outcome in outcomes):.1f}", justify="right"
    )
    table.add_column("why", overflow="fold")
    for outcome in outcomes:
        table.add_row(
            Text(outcome.name),
            Text(outcome.verdict, style=COLOURS[outcome.verdict]),
            Text(outcome.standing, style=STANDING_COLOURS.get(outcome.standing, "")),
            f"{outcome.seconds:.1f}",
            Text(outcome.reason),
        )
    return table
