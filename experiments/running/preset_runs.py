"""Run a preset for every seed and bring the seeds together."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.running.engines import run_once
from experiments.running.options import Options
from experiments.running.progress import progress
from experiments.studies.control import word
from experiments.studies.standing import COLOURS, compared
from pfl_flower.run.checks import Check, sanity_checks
from pfl_flower.run.config import RunConfig
from pfl_flower.run.figures import run_figure
from pfl_flower.run.finished import read_result
from pfl_flower.run.left_out import left_out_of_seeds
from pfl_flower.run.metrics import NODES
from pfl_flower.run.outcome import KEPT_CHECKS, knowledge_told, title
from pfl_flower.run.places import changes, named
from pfl_flower.run.preset_claims import NO_CLAIM, claimed, claims_of
from pfl_flower.run.presets import preset, settings_of
from pfl_flower.run.rest_checks import REST_CHECKS
from pfl_flower.run.results import behaviour, summarise, write_json
from pfl_flower.run.rounds import ROUNDS_FILE, read_rounds, write_together
from pfl_flower.run.trial import check_before
from pfl_flower.run.verdict import in_words
from pfl_flower.run.writing import check_other_results, own_folder
from pfl_flower.support.console import place, plain
from pfl_flower.support.foreign_text import legible
from pfl_flower.support.left_out import LeftOut
from pfl_flower.support.versions import commit

MOST_SHOWN = 300
"""Metrics beyond which they are not printed one by one: who has so many has tables of its own."""
PRESET_SEEDS = (1,)
"""What a preset runs when no seeds are named."""


def run_preset(name: str, options: Options, console: Console) -> dict[str, Any]:
    """Run a preset for all seeds; write and return its summary.

    Raises
    ------
    ConfigError, DataError
        If it is refused; if its folder cannot be written to, or another run writes there.
    """
    folder = preset_folder(name, options)
    base = preset(name)
    seeds = options.seeds or PRESET_SEEDS
    configs = [options.configure(base, folder, seed) for seed in seeds]
    new = [config for config in configs if not finished(config, options)]
    if new:
        # One seed's run is refused as another's is: before a line is printed, or a folder made.
        check_before(new[0])
    with own_folder("--output", folder):
        console.print(Text(f"results in {legible(str(folder))}"), soft_wrap=True)
        return _run_seeds(name, configs, options, console)


def preset_folder(name: str, options: Options) -> Path:
    """Return where a preset's results go, whose folder names the settings that are not its own."""
    config = options.configure(preset(name), options.output, seed=1)
    return options.output / named(name, changes(config.flat(), settings_of(name), "seed"))


def _run_seeds(
    name: str, configs: Sequence[RunConfig], options: Options, console: Console
) -> dict[str, Any]:
    began, folder = time.perf_counter(), configs[0].folder().parent
    seeds = [config.seed for config in configs]
    for config in configs:
        if finished(config, options):
            console.print(f"{name}, {config.name}: kept from before")
            continue
        if not (options.fresh or config.resume):
            check_other_results(config.folder(), config.flat(), "--output")
        growing = config.folder() / ROUNDS_FILE
        with progress(console, f"{name} {config.name}", growing, config.rounds):
            run_once(config, options)
    curves = [read_rounds(config.folder() / ROUNDS_FILE) for config in configs]
    finals = [final_metrics(config) for config in configs]
    checks = [claim.check(finals) for claim in claims_of(configs[0])]
    for config, rows in zip(configs, curves, strict=True):
        every = [*sanity_checks(config, rows), *_of_users(config), *_of_rest(config)]
        checks += [_for_seed(check, config) for check in every]
    left_out = {config.name: read_result(config.folder()).left_out for config in configs}
    trends = [behaviour([row["step_norm"] for row in rows[1:]]) for rows in curves]
    own = {"name": name, "output-dir": str(folder), "seed": seeds[0]}
    summary = summarise(
        experiment=name,
        config={**configs[0].flat(), **own},
        seeds=seeds,
        finals=finals,
        checks=checks,
        device=_device(configs[0]),
        seconds=time.perf_counter() - began,
        extra={
            "engine": options.engine,
            "estimator": configs[0].estimator,
            "attack_knowledge": knowledge_told(configs[0]),
            "behaviour": trends,
            "claims": claimed(configs[0]),
            "nodes_word": read_result(configs[0].folder()).summary.get("nodes_word", []),
            "left_out": [asdict(one) for one in left_out_of_seeds(left_out)],
        },
    )
    write_together(folder / ROUNDS_FILE, [config.folder() / ROUNDS_FILE for config in configs])
    run_figure(curves, title(configs[0]), folder)
    write_json(folder / "summary.json", summary)
    return summary


def final_metrics(config: RunConfig) -> dict[str, float]:
    """Return the metrics that a finished run ended with."""
    kept = json.loads((config.folder() / "summary.json").read_text())
    return {name: float(metric["values"][0]) for name, metric in kept["metrics"].items()}


def show(summary: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Print metrics, checks and where the files are."""
    table = Table(title=plain(summary["experiment"]))
    for column in ("metric", "mean", "std"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    metrics = summary["metrics"]
    for metric, value in metrics.items():
        label = metric + (NODES if metric in summary.get("nodes_word", ()) else "")
        table.add_row(plain(label), f"{value['mean']:.4g}", f"{value['std']:.2g}")
    many = len(metrics) > MOST_SHOWN
    console.print(plain(f"{len(metrics):,} metrics, in summary.json") if many else table)
    for check in summary["checks"]:
        found = word(check["name"], check["passed"], summary)
        said = plain(in_words(Check(**check)))
        console.print(Text.assemble((found.text, found.colour), "  ", said))
    for against in compared(summary):
        console.print(plain(str(against), COLOURS[against.standing]))
    if summary.get("standing"):
        console.print(f"the paper's numbers and statements: {summary['standing']}")
    for one in summary.get("left_out", ()):
        console.print(plain(f"left out: {LeftOut(**one)}"))
    if summary.get("control"):
        every, some = "every claim of success failed, as it must", "a claim of success held"
        console.print(f"control, nobody attacks: {every if summary['passed'] else some}")
    if summary.get("claims") == NO_CLAIM:
        console.print(NO_CLAIM)
    if "behaviour" in summary:
        console.print(f"steps of rho are {', '.join(summary['behaviour'])}")
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            console.print(place(path), soft_wrap=True)


def finished(config: RunConfig, options: Options) -> bool:
    """Whether this configuration was run to its end, and by this code unless options say so."""
    try:
        kept = json.loads((config.folder() / "summary.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(kept.get("config") == config.flat()) and may_keep(kept, options)


def may_keep(kept: Mapping[str, Any], options: Options) -> bool:
    """Whether what is kept counts: made by this very code, or by any with ``--keep``."""
    source = commit()
    clean = source != "unknown" and not source.endswith("-dirty")
    return not options.fresh and (options.keep or (clean and kept.get("commit") == source))


def _of_users(config: RunConfig) -> list[Check]:
    """Return the checks on single users, and on the tracker, of which rounds.csv does not tell."""
    return [check for check in read_result(config.folder()).checks if check.name in KEPT_CHECKS]


def _of_rest(config: RunConfig) -> list[Check]:
    """Return the checks on where the run leads, which takes an equilibrium to tell."""
    return [check for check in read_result(config.folder()).checks if check.name in REST_CHECKS]


def _device(config: RunConfig) -> str:
    return str(json.loads((config.folder() / "summary.json").read_text())["device"])


def _for_seed(check: Check, config: RunConfig) -> Check:
    return Check(f"{config.name} {check.name}", check.value, check.expected, check.passed)
