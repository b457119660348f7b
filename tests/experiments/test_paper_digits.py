"""Figures 1 to 3, Table 1 and the report from end to end, on the digits instead of MNIST."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from experiments.report.command import report
from experiments.running.options import Options
from experiments.studies.reproduce import reproduce

FIGURES = ("fig1-cga", "fig2-model-attack", "fig3-data-poisoning")
THEORY = ("prop1-projection", "thm5-single-point")


@pytest.mark.slow
def test_figures_and_theorems_are_reproduced_and_reported(tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    quick = Options(output=tmp_path, quick=True, seeds=(1,), keep=True)
    digits = Options(
        output=tmp_path,
        quick=True,
        seeds=(1,),
        keep=True,
        settings={"dataset": "digits", "points-per-user": "100"},
    )
    outcomes = [*reproduce(THEORY, quick, console), *reproduce(FIGURES, digits, console)]
    assert {outcome.verdict for outcome in outcomes[: len(THEORY)]} == {"passed"}
    assert "error" not in {outcome.verdict for outcome in outcomes}
    again = reproduce(FIGURES, digits, console)
    assert [outcome.verdict for outcome in again] == [o.verdict for o in outcomes[len(THEORY) :]]
    page, table = report(tmp_path, [*THEORY, *FIGURES], console)
    html, rows = page.read_text(), table.read_text()
    assert html.count("data:image/png;base64,") >= len(THEORY) + len(FIGURES)
    for name in (*THEORY, *FIGURES):
        assert name in html
        assert f"| {name} |" in rows
    assert "quick" in rows
