"""The studies of users who differ: cells, predictions that can fail, and pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from experiments.heterogeneity import study
from experiments.heterogeneity.cells import BASE, HONEST, Chain, at_rest, partition, worth
from experiments.heterogeneity.components import components
from experiments.heterogeneity.presentation import draw
from experiments.heterogeneity.study import ALPHAS, LAMS, REGULARIZERS, STUDY, best_lam, metrics
from experiments.studies.study import Setting
from pfl_flower.data.spec import DataSpec
from pfl_flower.run.at_equilibrium import attacked_equilibrium
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import Problem, build_problem
from tests.support.studies import run_quick

TINY: dict[str, Any] = {**BASE, "dataset-options": '{"count": 3}', "nu": 0.1, "lam": 5.0}


def problem(regularizer: str, alpha: str = "0.3", **keys: Any) -> Problem:
    settings = {**TINY, **partition(alpha), "regularizer": regularizer, **keys}
    return build_problem(parse_config(settings)).in_double


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("strategic", ["none", "10"])
def test_a_rest_is_where_a_run_with_these_settings_leads(regularizer: str, strategic: str) -> None:
    found = at_rest(problem(regularizer), strategic != "none", None)
    tight = problem(regularizer, **{"strategic-users": strategic, "solver-tolerance": 1e-10})
    expected = attacked_equilibrium(tight)
    assert found.converged and expected.converged
    torch.testing.assert_close(found.rho, expected.rho, atol=1e-5, rtol=0)
    cell = worth(problem(regularizer), found)
    assert cell["tested"] == len(HONEST)
    assert 0 <= cell["worst"] <= cell["theta"] <= 1


def test_components_are_the_digits_seen_from_few_sides() -> None:
    source = components(DataSpec(name="", seed=1), count=64)
    features, labels = source.training_set()
    assert (features.shape, source.outputs) == ((1437, 65), 10)
    assert float(features[:, 0].std()) == pytest.approx(1, rel=1e-2)
    few, _ = components(DataSpec(name="", seed=1), count=3).training_set()
    torch.testing.assert_close(few[:, :3].abs(), features[:, :3].abs())
    products = features[:, :64].T @ features[:, :64]
    off = products - products.diagonal().diag()
    assert float(off.abs().max()) < 1e-8 * float(products.max())
    assert labels.min() == 0


def made_up(**changes: float) -> dict[str, Any]:
    """Cells in which all is as predicted, but for entries ``alpha|name|lam|attack|measure``."""
    cells: dict[str, Any] = {}
    for row, alpha in enumerate(ALPHAS):
        cells[alpha] = {}
        for name in REGULARIZERS:
            by_lam = {}
            for place, lam in enumerate(LAMS):
                gain = [0, 0, 0.01, 0.05 + 0.02 * row, 0.03, 0.0, -0.01, -0.02][place]
                own = 0.9 + gain
                lost = [0, 0, 0.02, 0.2, 0.4, 0.6, 0.8, 0.9][place]
                rho = own - (0.3 - 0.05 * row if place < 6 else 0.0)
                calm = dict(theta=own, worst=own, rho=0.9, hacked=0.0, reached=0.0)
                hit = dict(theta=own - lost, worst=0.0, hacked=0.9, reached=float(place > 5))
                hit["rho"] = 0.9 - (0.4 - 0.1 * row)
                for cell in (calm, hit):
                    cell |= {"own rho": rho, "converged": 1.0, "tested": 10.0}
                by_lam[f"{lam:g}"] = {"none": calm, "CGA": hit}
            cells[alpha][name] = {"alone": 0.9, "by lam": by_lam}
    for path, value in changes.items():
        alpha, name, lam, attack, measure = path.split("|")
        cells[alpha][name]["by lam"][lam][attack][measure] = value
    return cells


def test_what_is_predicted_is_reproduced_as_predicted() -> None:
    final = metrics(made_up())
    standings = {one.what: one.standing for one in STUDY.compare([final])}
    assert {what for what, word in standings.items() if word != "reproduced"} == set()
    assert all(check.passed for check in STUDY.checks_of([final]))
    assert final["alpha 1, l2: best lam"] == 1.0
    assert (
        final["alpha 1, l2: best lam under CGA"] == 0.1
        or final["alpha 1, l2: best lam under CGA"] == 0.001
    )
    assert final["alpha 1, l2: least lam at which CGA reaches its target"] == 1e3


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"1|l2|0.001|none|theta": 0.7}, "little lam: as if alone"),
        ({"1|l2|0.001|CGA|theta": 0.5}, "little lam: not attacked"),
        ({"1|l2|10000|none|own rho": 0.5}, "much lam: theta_n is rho"),
        ({"1|l2|10000|CGA|theta": 0.88}, "much lam: one user owns every model"),
        ({"1|l2|100|CGA|theta": 0.95}, "the best lam is no larger under attack"),
        ({"inf|l2|1|none|own rho": 0.1}, "who differs more gains more over rho"),
        ({"0.05|l2|1|none|theta": 1.05}, "who differs more gains less over a model of its own"),
        ({"inf|l2|1|CGA|rho": 0.0}, "where users differ more rho is easier to attack"),
    ],
)
def test_a_prediction_can_be_contradicted(changes: dict[str, float], what: str) -> None:
    found = {one.what: one.standing for one in STUDY.compare([metrics(made_up(**changes))])}
    words = {one for key, one in found.items() if key.startswith(what)}
    assert "contradicted" in words


@pytest.mark.parametrize(("measure", "value"), [("converged", 0.0), ("tested", 9.0)])
def test_numbers_that_cannot_be_relied_on_fail(measure: str, value: float) -> None:
    final = metrics(made_up(**{f"1|l2|1|CGA|{measure}": value}))
    assert sum(not check.passed for check in STUDY.checks_of([final])) == 1


def test_of_equal_accuracies_the_least_lam_is_best() -> None:
    assert best_lam({0.1: 0.5, 1.0: 0.5, 10.0: 0.4}) == 0.1


def test_a_chain_that_is_there_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.heterogeneity.cells.BASE", TINY)
    from experiments.running.options import Options

    setting = Setting(seed=1, folder=tmp_path, options=Options(output=tmp_path, keep=True))
    first = Chain(setting, "inf", "squared-l2", (0.1, 1.0)).cells()
    assert math.isfinite(first["alone"])
    monkeypatch.setattr(Chain, "_measured", lambda chain: {"again": chain.lams})
    assert Chain(setting, "inf", "squared-l2", (0.1, 1.0)).cells()["by lam"].keys() == {"0.1", "1"}
    assert Chain(setting, "inf", "squared-l2", (0.1,)).cells() == {"again": (0.1,)}


def test_the_picture_and_the_table(tmp_path: Path) -> None:
    draw([{"cells": made_up()}, {"cells": made_up()}], tmp_path)
    with Image.open(tmp_path / "heterogeneity.png") as image:
        assert min(image.size) > 300
    lines = (tmp_path / "heterogeneity.md").read_text().splitlines()
    assert len(lines) == 2 + len(ALPHAS) * len(REGULARIZERS)
    assert lines[2].startswith("| 0.05 | squared-l2 | 0.900 | 1 | 0.950 | 0.750 |")
    assert study.USUAL in LAMS


@pytest.mark.slow
def test_the_quick_form(tmp_path: Path) -> None:
    summary = run_quick(STUDY, tmp_path)
    assert summary["passed"], summary["checks"]
