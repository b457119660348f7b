"""The studies that run whole configurations: their runs, what is kept, and what is drawn."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.paper import (
    attack_limits,
    curves,
    figure_1_cga,
    figure_2_model_attack,
    figure_3_data_poisoning,
    figures_17_to_19_cifar,
    mean_ahead,
    runs,
    sums_and_means,
    table_1_sums_and_means,
)
from experiments.paper.curves import COLUMNS, curve
from experiments.paper.protocols import MNIST, PAPER
from experiments.paper.runs import run_variants
from experiments.paper.sums_and_means import LINES, REDUCTIONS, sums_beat_means
from experiments.paper.table_1_sums_and_means import LAMS, MODELS, OnCpu
from experiments.running.options import Options
from experiments.studies.measuring import run_study
from experiments.studies.study import Setting, Study
from experiments.studies.variants import Keys, configured, run_variant, slug
from pfl_flower.aggregation.server_steps import StepSizes
from pfl_flower.run.config import parse_config
from pfl_flower.run.rounds import read_rounds
from pfl_flower.run.step_sizes import local_step_sizes
from pfl_flower.support.errors import ConfigError
from tests.support.runs import TINY

VARIANTS = {"one, lam": {**TINY, "lam": 1.0}, "other": {**TINY, "regularizer": "l2"}}
QUIET = Console(quiet=True)
AT_REST = (
    *(f"{what} at rest: {label}" for what in ("active", "norm") for label in mean_ahead.REST),
    *(f"gradient left: {label}" for label in mean_ahead.REST),
    "rest, mean ahead of sum",
    "rest, sum ahead of alone",
    "rest, ridge over mean",
)


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
    assert 0.8 * curves.MOST_POINTS < len(kept["round"]) <= curves.MOST_POINTS
    assert kept["round"][:8] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert max(b - a for a, b in itertools.pairwise(kept["round"])) <= 26
    assert (kept["round"][0], kept["round"][-1], kept["value"][-1]) == (0, 5000, 1.0)


def test_every_variant_of_every_figure_is_a_valid_configuration(tmp_path: Path) -> None:
    for quick in (True, False):
        asked = Setting(seed=1, quick=quick, folder=tmp_path)
        figures = [figure_1_cga.variants(asked)]
        for lams, noise, rounds in (
            ((1.0,), 0.6, 200),
            (LAMS, 0.6, 200),
            ((1.0,), 0.0, 1000),
        ):
            figures.append(sums_and_means.variants(MODELS, lams, noise, rounds))
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
    config = configured(asked, "x", {"rounds": 9})
    assert (config.lam, config.rounds) == (2.0, 4)


FIGURES = {
    figure_1_cga: (figure_1_cga.STUDY,),
    figure_2_model_attack: (figure_2_model_attack.STUDY,),
    figure_3_data_poisoning: (figure_3_data_poisoning.STUDY,),
    mean_ahead: (mean_ahead.STUDY,),
    figures_17_to_19_cifar: (
        figures_17_to_19_cifar.CGA,
        figures_17_to_19_cifar.MODEL,
        figures_17_to_19_cifar.DATA,
    ),
    table_1_sums_and_means: (
        table_1_sums_and_means.TABLE1,
        table_1_sums_and_means.LAMBDA,
        table_1_sums_and_means.NO_NOISE,
    ),
}


def made_up(asked: Setting, variants: Mapping[str, Keys]) -> dict[str, Any]:
    """Return what runs of the variants would leave, without running them."""
    rows = {"round": [0, 1, 2, 3, 4], "value": [0.1, 0.2, 0.3, 0.4, 0.5]}
    for label, keys in variants.items():
        configured(asked, label, keys)
    return {
        "metrics": {f"{label}: {key}": 0.5 for label in variants for key in runs.ENDINGS},
        "curves": {label: dict.fromkeys(COLUMNS, rows) for label in variants},
    }


@pytest.mark.parametrize(
    ("module", "study"),
    [(module, study) for module, studies in FIGURES.items() for study in studies],
    ids=lambda value: getattr(value, "name", ""),
)
def test_claims_and_printed_numbers_are_of_what_is_measured(
    module: Any, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged and drawn on made-up runs, so that a wrong name is seen without hours of real ones."""
    fakes = {
        "run_variants": made_up,
        "cga_limit": lambda *_: "",
        "exact_limit": lambda *_: "",
        "beyond_steps": lambda *_: 0.5,
        "linear_at_rest": lambda *_: dict.fromkeys(AT_REST, 0.5),
        "read_rounds": lambda _: [{"round": 250.0, **dict.fromkeys(runs.ENDINGS, 0.5)}],
        "at_rest": lambda _, label, *__: {
            f"{label}, equilibrium: {key}": 0.5 for key in attack_limits.WORTH
        },
    }
    for name, fake in fakes.items():
        if hasattr(module, name):
            monkeypatch.setattr(module, name, fake)
    results = [study.measure(Setting(seed=seed, folder=tmp_path)) for seed in (1, 2)]
    checks = study.checks(results)
    assert checks
    assert not [check.name for check in checks if math.isnan(float(check.value))]
    compared = study.compare([result["metrics"] for result in results])
    assert "not measured" not in {one.standing for one in compared}
    assert study.setting and study.has_runs
    if study is FIGURES[module][0]:
        study.draw(results, tmp_path)
        assert list(tmp_path.glob(f"{study.name}*.png"))


def test_two_layers_run_on_a_cpu_where_the_study_says_and_are_judged_there_alone(
    tmp_path: Path,
) -> None:
    on_cpu = OnCpu(seeds=1, lams=(1.0,))
    cpu = Options(device="cpu")
    assert on_cpu.covers(Setting(seed=1, folder=tmp_path, options=cpu)) == (1.0,)
    assert on_cpu.covers(Setting(seed=2, folder=tmp_path, options=cpu)) == ()
    assert on_cpu.covers(Setting(seed=1, quick=True, folder=tmp_path, options=cpu)) == ()
    both = {"linear": (1.0, 10.0), "two-layer": (1.0,)}
    metrics = {
        f"{model}, lam {lam:g}, {reduction}: {column}": {"sum": 0.8, "mean": 0.5}[reduction]
        for model, lams in both.items()
        for lam in lams
        for reduction in REDUCTIONS
        for column, _ in LINES
    }
    other = {key: value for key, value in metrics.items() if key.startswith("linear")}
    checks = sums_beat_means([metrics, other], MODELS, (1, 10))
    assert len(checks) == 9
    assert all(check.passed for check in checks)
    metrics["two-layer, lam 1, mean: accuracy_true"] = 0.9
    checks = sums_beat_means([metrics], MODELS, (1, 10))
    failed = [check.name for check in checks if not check.passed]
    assert failed == ["two-layer, lam 1: global, sum above mean"]


def test_figure_1_steps_as_the_authors_train_does_and_the_other_figures_as_before(
    tmp_path: Path,
) -> None:
    """Their scheduler steps before the first round: 0.02 x 0.99, then 0.02 x 0.99^2."""
    keys = figure_1_cga.variants(Setting(seed=1, folder=tmp_path))
    for regularizer in ("squared-l2", "l2", "smooth-l2"):
        config = parse_config(keys[f"paper, {regularizer}"])
        server = StepSizes(
            first=config.server_lr, decay=config.server_lr_decay, floor=config.server_lr_floor
        )
        for sizes in (server, local_step_sizes(config)):
            theirs = [max(0.02 * 0.99**t, 0.005) for t in (1, 2, 100, 200)]
            assert [sizes.at(t) for t in (1, 2, 100, 200)] == pytest.approx(theirs, rel=1e-15)
        assert parse_config(keys[f"threat model, {regularizer}"]).local_lr == 0.02
    assert (PAPER["server-lr"], MNIST["local-lr"]) == (0.02, 0.02)


def test_what_adam_cannot_reach_is_what_adam_does_not_reach(tmp_path: Path) -> None:
    """Steps too short for the target leave about what is said; longer ones leave nothing so far."""
    keys = {
        **TINY,
        "server-optimizer": "adam",
        "estimator": "oracle",
        "update-order": "local-first",
        "rounds": 60,
    }
    left, out = {}, {}
    for lr in (0.002, 0.1):
        asked = {**keys, "server-lr": lr}
        config = run_variant(setting(tmp_path, keep=True), f"steps {lr}", asked)
        left[lr] = read_rounds(config.folder() / "rounds.csv")[-1]["distance_to_target"]
        out[lr] = attack_limits.beyond_steps(setting(tmp_path, keep=True), f"steps {lr}", asked)
    assert 0.9 * out[0.002] <= left[0.002] <= 1.2 * out[0.002]
    assert out[0.1] < 0.01 * out[0.002]
