"""Measure a study: every seed once, kept when finished; judge, draw, and leave a summary."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from experiments.running.options import Options
from experiments.running.preset_runs import may_keep
from experiments.studies.judging import judgement
from experiments.studies.study import Setting, Study
from pfl_flower.run.places import named
from pfl_flower.run.preset_claims import FREE
from pfl_flower.run.problem import choose_device
from pfl_flower.run.results import summarise, write_json
from pfl_flower.run.writing import asked_of, own_folder
from pfl_flower.support.console import plain
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.versions import commit


def run_study(study: Study, options: Options, console: Console) -> dict[str, Any]:
    """Measure every seed, judge, draw; write and return the summary.

    Raises
    ------
    ConfigError
        If run-config keys are set for a study that has none, a control is asked of one in which
        nobody attacks, the quick form would replace full results, or another process writes there.
    """
    if options.control and not study.success:
        raise ConfigError(f"--control: expected a study of an attack, and {study.name} has none")
    if not study.has_runs and (options.settings or options.rounds or options.nodes):
        raise ConfigError(f"NAME = {study.name}: expected no --set, --rounds or --nodes")
    folder = study_folder(study, options)
    check_replaceable(study, options)
    with own_folder("--output", folder):
        return _run(study, folder, options, console)


def study_folder(study: Study, options: Options) -> Path:
    """Return where a study's results go: its control, and other settings, have their own folders.

    ``reproduce`` runs studies as they stand.
    """
    rounds = {} if options.rounds is None else {"rounds": options.rounds}
    kept = FREE | study.brought
    given = {**options.settings, **options.study}
    own = {**study.folder, **{key: value for key, value in given.items() if key not in kept}}
    changed = named(study.name, {**own, **rounds})
    return options.output / (f"{changed}-control" if options.control else changed)


def check_replaceable(study: Study, options: Options) -> None:
    """Refuse that a look in quick form replaces what a study came to in its full size.

    Raises
    ------
    ConfigError
        If its folder holds that, and ``fresh`` does not say that it may be replaced.
    """
    folder = study_folder(study, options)
    if options.quick and not options.fresh and asked_of(folder).get("quick") is False:
        raise ConfigError(
            f"--quick: expected another --output, as {folder} has the results of the full study; "
            "--fresh replaces them"
        )


def _run(study: Study, folder: Path, options: Options, console: Console) -> dict[str, Any]:
    seeds = options.seeds or (study.seeds[:1] if options.quick else study.seeds)
    results = [_measured(study, seed, folder / f"seed-{seed}", options, console) for seed in seeds]
    asked, finals = _asked(options), [result["metrics"] for result in results]
    summary = summarise(
        experiment=study.name,
        config=asked,
        seeds=seeds,
        finals=finals,
        checks=(),
        device=str(choose_device(options.device)),
        seconds=sum(result["seconds"] for result in results),
        extra={
            "commits": [result["commit"] for result in results],
            "title": study.title,
            **judgement(study, finals, asked),
        },
    )
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
            tell=lambda line: console.print(plain(line)),
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
    own = {"study": asked["study"]} if options.study else {}
    return {**{key: asked[key] for key in kept}, **own}
