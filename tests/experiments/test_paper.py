"""The studies that run whole configurations: their runs, what is kept, and what is drawn."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.paper import cga, data, model, runs, sums
from experiments.paper.runs import at_least, at_most, curve, run_variants, slug
from experiments.running.options import Options
from experiments.studies.study import Setting, run_study
from pfl_flower.run.config import parse_config
from pfl_flower.support.errors import ConfigError
from tests.support.runs import TINY

VARIANTS = {"one, lam": {**TINY, "lam": 1.0}, "other": {**TINY, "regularizer": "l2"}}
QUIET = Console(quiet=True)


def setting(folder: Path, **options: object) -> Setting:
    return Setting(seed=3, folder=folder, options=Options(**options))  # type: ignore[arg-type]


def test_variants_leave_metrics_and_curves_and_are_kept(tmp_path: Path) -> None:
    found = run_variants(setting(tmp_path, keep=True), VARIANTS)
    assert found["metrics"]["one, lam: distance_to_target"] > 0
    assert found["curves"]["other"]["distance_to_target"]["round"] == [0, 1, 2, 3, 4, 5, 6]
    assert (tmp_path / "one-lam" / "summary.json").exists()
    rows = tmp_path / "other" / "rounds.csv"
    before = rows.stat().st_mtime_ns
    assert run_variants(setting(tmp_path, keep=True), VARIANTS) == found
    assert rows.stat().st_mtime_ns == before
    run_variants(setting(tmp_path, keep=True, fresh=True), VARIANTS)
    assert rows.stat().st_mtime_ns > before


def test_another_configuration_is_run_again(tmp_path: Path) -> None:
    run_variants(setting(tmp_path, keep=True), VARIANTS)
    other = {"other": {**VARIANTS["other"], "lam": 0.5}}
    run_variants(setting(tmp_path, keep=True), other)
    kept = json.loads((tmp_path / "other" / "summary.json").read_text())
    assert kept["config"]["lam"] == 0.5


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    lines = ["round,accuracy_true,norm_rho"] + [f"{t},{t / 5000},1" for t in range(5001)]
    (tmp_path / "rounds.csv").write_text("\n".join(lines))
    kept = curve(tmp_path / "rounds.csv")["accuracy_true"]
    assert 0.8 * runs.MOST_POINTS < len(kept["round"]) <= runs.MOST_POINTS
    assert kept["round"][:8] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert max(b - a for a, b in itertools.pairwise(kept["round"])) <= 26
    assert (kept["round"][0], kept["round"][-1], kept["value"][-1]) == (0, 5000, 1.0)


def test_checks_take_the_worst_seed_and_fail_on_what_is_missing() -> None:
    results = [{"metrics": {"a": value}} for value in (0.2, 0.9)]
    assert at_most(results, "a", 0.9).passed
    assert not at_most(results, "a", 0.5).passed
    assert at_least(results, "a", 0.2).passed
    assert not at_least(results, "a", 0.5).passed
    assert not at_least([*results, {"metrics": {}}], "a", 0.0).passed
    assert math.isnan(float(at_most([{"metrics": {}}], "a", 1.0).value))


def test_every_variant_of_every_figure_is_a_valid_configuration(tmp_path: Path) -> None:
    for quick in (True, False):
        asked = Setting(seed=1, quick=quick, folder=tmp_path)
        figures = [cga.variants(asked)]
        for lams, noise, rounds in (((1.0,), 0.6, 200), (sums.LAMS, 0.6, 200), ((1.0,), 0.0, 1000)):
            figures.append(sums.variants(sums.MODELS, lams, noise, rounds))
        for variants in figures:
            assert len({slug(label) for label in variants}) == len(variants)
            for keys in variants.values():
                parse_config(keys)


def test_set_reaches_the_runs_of_a_study_and_no_others(tmp_path: Path) -> None:
    from experiments.theory.projection import STUDY

    with pytest.raises(ConfigError, match="expected no --set"):
        run_study(STUDY, Options(output=tmp_path, settings={"lam": 2.0}), QUIET)
    options = Options(settings={"lam": 2.0}, rounds=4)
    asked = Setting(seed=1, folder=tmp_path, options=options)
    config = runs.configured(asked, "x", {"rounds": 9})
    assert (config.lam, config.rounds) == (2.0, 4)


@pytest.mark.parametrize("study", [cga.STUDY, model.STUDY, data.STUDY, sums.TABLE1, sums.LAMBDA])
def test_success_and_printed_numbers_name_what_is_measured(study) -> None:  # type: ignore[no-untyped-def]
    """Judged and drawn on made-up results, so that a wrong name is seen without hours of runs."""
    assert study.setting
    assert study.has_runs
    made = np.linspace(0, 1, 5).tolist()
    labels = {printed.metric.split(":")[0] for printed in study.printed}
    labels |= {name.split(":")[0] for name in study.success}
    curves = {
        label: {column: {"round": [0, 1, 2, 3, 4], "value": made} for column in runs.COLUMNS}
        for label in labels
    }
    metrics = {
        f"{label}: {column}": 0.5
        for label in labels
        for column in ("accuracy_true", "accuracy_target", "distance_to_target")
    }
    results = [{"metrics": metrics, "curves": curves}] * 2
    names = {check.name for check in study.judge(results)}
    assert set(study.success) <= names


def test_two_layers_run_on_a_cpu_where_the_study_says_and_are_judged_there_alone(
    tmp_path: Path,
) -> None:
    on_cpu = sums.OnCpu(seeds=1, lams=(1.0,))
    cpu = Options(device="cpu")
    assert on_cpu.covers(Setting(seed=1, folder=tmp_path, options=cpu)) == (1.0,)
    assert on_cpu.covers(Setting(seed=2, folder=tmp_path, options=cpu)) == ()
    assert on_cpu.covers(Setting(seed=1, quick=True, folder=tmp_path, options=cpu)) == ()
    both = {"linear": (1.0, 10.0), "two-layer": (1.0,)}
    metrics = {
        f"{model}, lam {lam:g}, {reduction}: {column}": {"sum": 0.8, "mean": 0.5}[reduction]
        for model, lams in both.items()
        for lam in lams
        for reduction in sums.REDUCTIONS
        for column, _ in sums.LINES
    }
    other = {key: value for key, value in metrics.items() if key.startswith("linear")}
    checks = sums.sums_beat_means([{"metrics": metrics}, {"metrics": other}], sums.MODELS, (1, 10))
    assert len(checks) == 9
    assert all(check.passed for check in checks)
    metrics["two-layer, lam 1, mean: accuracy_true"] = 0.9
    checks = sums.sums_beat_means([{"metrics": metrics}], sums.MODELS, (1, 10))
    failed = [check.name for check in checks if not check.passed]
    assert failed == ["two-layer, lam 1: global, sum above mean"]
