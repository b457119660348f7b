"""Theorems 2 and 3, Lemma 5 and Definition 2 as studies: they pass, and their controls fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from experiments.options import Options
from experiments.study import run_study
from experiments.theory import gradient_pac, linear_pac, logistic_pac, own_regularizer

STUDIES = [module.STUDY for module in (linear_pac, logistic_pac, own_regularizer, gradient_pac)]


@pytest.mark.parametrize("control", [False, True], ids=["honest", "control"])
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_study_passes_and_its_control_fails(study, control: bool, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    options = Options(output=tmp_path, seeds=(1,), quick=True, control=control)
    summary = run_study(study, options, Console(quiet=True))
    assert summary["passed"] is True
    judged = {check["name"]: check["passed"] for check in summary["checks"]}
    assert all(judged[name] is not control for name in study.success)
    assert all(passed for name, passed in judged.items() if name not in study.success)
    assert (tmp_path / study.name / f"{study.name}.png").is_file()
