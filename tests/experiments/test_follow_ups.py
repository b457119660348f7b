"""What was added to the paper's statements: each study passes, its control fails, its laws hold."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.optimize import brentq

from experiments.studies.judging import finals_of
from experiments.studies.study import Setting, Study
from experiments.theory import (
    honest_points,
    means_not_pac,
    nonconvex_presentation,
    reports_presentation,
    sampled_l2,
)
from experiments.theory.honest_points import attack, everybody, shortened
from experiments.theory.pac import Learner
from experiments.theory.queries import normal_queries
from experiments.theory.reports_against_data import Neighbours, displacement
from pfl_flower.objective.regularizers import SmoothL2
from tests.support.studies import run_quick

MODULES = (
    honest_points,
    means_not_pac,
    nonconvex_presentation,
    reports_presentation,
    sampled_l2,
)
RESULTS = Path(__file__).parents[2] / "experiments" / "results"
STUDIES = [module.STUDY for module in MODULES]


@pytest.mark.parametrize(
    "study",
    [study for study in STUDIES if (RESULTS / study.name / "summary.json").exists()],
    ids=lambda study: study.name,
)
def test_claims_and_comparisons_are_of_what_is_measured(study: Study) -> None:
    """On the stored results: no claim is of a name that nothing has."""
    finals = finals_of(json.loads((RESULTS / study.name / "summary.json").read_text()))
    checks = study.checks_of(finals)
    assert all(check.passed and not math.isnan(float(check.value)) for check in checks)
    assert "not measured" not in {one.standing for one in study.compare(finals)}


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_study_passes_and_draws(study: Study, tmp_path: Path) -> None:
    summary = run_quick(study, tmp_path)
    assert summary["passed"], [check for check in summary["checks"] if not check["passed"]]
    assert (tmp_path / study.name / f"{study.name}.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_without_an_attack_or_an_honest_answer_every_success_fails(
    study: Study, tmp_path: Path
) -> None:
    blank = replace(study, draw=lambda results, folder: None)
    summary = run_quick(blank, tmp_path, control=True)
    failed = {check["name"] for check in summary["checks"] if not check["passed"]}
    assert set(study.must_fail) <= failed


@pytest.mark.parametrize("attackers", [1, 5, 9])
def test_the_displacement_balances_honest_and_reported_pulls(attackers: int) -> None:
    coupling, honest = SmoothL2(lam=1.0), 20 - attackers

    def pull(distance: float) -> float:
        z = torch.tensor([distance], dtype=torch.float64)
        return honest * float(coupling.grad_rho(z, torch.zeros_like(z))) - 0.9 * attackers

    assert displacement(attackers) == pytest.approx(brentq(pull, 0, 100), rel=1e-9)
    root = attackers / math.sqrt(20 * (20 - 2 * attackers))
    assert displacement(attackers, 1.0) == pytest.approx(root)


def test_neighbours_differ_in_one_answer_alone() -> None:
    pair = Neighbours.draw(Setting(seed=1), 5, 40)
    for one, other in zip(pair.before.users, pair.after.users, strict=True):
        assert torch.equal(one.features, other.features)
    changed = [
        int((one.labels != other.labels).sum())
        for one, other in zip(pair.before.users, pair.after.users, strict=True)
    ]
    assert changed == [1] + [0] * 14


def test_data_do_on_each_of_two_datasets_what_reports_do_and_not_on_both() -> None:
    found = Neighbours.draw(Setting(seed=2), 5, 300).measure()
    assert max(found["held"], found["remade"]) < 1e-8
    assert found["reports"] > 10 * found["data"]


def test_fewer_points_are_the_first_of_the_same_and_fewer_labels_do_not_hold() -> None:
    most = everybody(Setting(seed=1), 200)
    few = shortened(most, 20, 3.0)
    assert torch.equal(few.users[4].features, most.users[4].features[:20])
    assert torch.equal(few.target, most.target)
    found = attack(few)
    assert found["miss"] < 1e-8
    assert found["pull"] <= found["ceiling"]
    assert attack(replace(few, idle=True))["miss"] > 0.1


@pytest.mark.parametrize(("reduction", "grows"), [("sum", 10.0), ("mean", 1.0)])
def test_a_users_curvature_grows_with_sums_alone(reduction: str, grows: float) -> None:
    learner = Learner.draw("least-squares", normal_queries, Setting(seed=1))
    bends = []
    for points in (300, 3000):
        users = means_not_pac.coupled(learner, learner.data(points, 0), reduction)  # type: ignore[arg-type]
        bends.append(float(torch.linalg.eigvalsh(users.hessian(0, learner.preferred))[0]))
    assert bends[1] / bends[0] == pytest.approx(grows, rel=0.3)
