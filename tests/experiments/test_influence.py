"""``influence``: of no rule is more found than its bound; the command keeps what it measures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import experiments
from experiments.__main__ import main
from experiments.influence import measuring, rows, study
from experiments.influence.measuring import Row, Size, measure
from experiments.running import preset_runs
from experiments.running.options import Options
from experiments.studies import measuring as studying
from pfl_flower.aggregation.influence import Bound
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.objective.table import REGULARIZERS
from pfl_flower.run.columns import Table

RESULTS = Path(experiments.__file__).parent / "results"
TINY = Size(strategic=2, directions=1, rounds=3, trials=24)
BOUNDED = [("qrmed", "squared-l2"), ("static-clipping", "squared-l2"), ("sum", "smooth-l2")]
CELLS = [(rule, "l2") for rule in AGGREGATIONS] + BOUNDED


@pytest.mark.parametrize(("rule", "regularizer"), CELLS)
def test_what_is_found_is_within_its_bound(rule: str, regularizer: str) -> None:
    row = measure(rule, regularizer, TINY)
    assert row.holds
    assert row.round_found > 0 and row.rest_found > 0
    if (rule, regularizer) in [*BOUNDED, ("sum", "l2")]:
        assert row.round_found < math.inf and row.rest_bound < math.inf
    if rule in ("sum", "static-clipping"):
        # The bound of a round is sharp: both sides are reached.
        assert row.round_found == pytest.approx(row.round_bound, rel=1e-6)
    assert not replace(row, round_bound=row.round_found / 2).holds
    assert not replace(row, rest_bound=row.rest_found / 2).holds


def test_without_any_bound_rho_goes_where_it_is_pushed() -> None:
    row = measure("sum", "squared-l2", TINY)
    assert row.free and row.holds
    assert row.round_bound == row.rest_bound == math.inf


def twice_the_mean(rows: Tensor) -> Tensor:
    return torch.as_tensor(2 * rows.mean(dim=0))


OWN = f"{__name__}:twice_the_mean"
TYPED = ["influence", "--quick", "--rule", OWN, "--rule", "sum", "--regularizer", "l2"]


def at_commit(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in (measuring, preset_runs, studying):
        monkeypatch.setattr(module, "commit", lambda: name)


def kept_rows(output: Path) -> Table:
    (path,) = output.glob("influence*/seed-1/influence.csv")
    return Table.from_csv(path.read_text())


def test_the_command_goes_on_with_what_it_has_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "QUICK", (1, 4, 8))
    at_commit(monkeypatch, "abc")
    measured: list[tuple[object, ...]] = []

    def once(*cell: Any) -> Row:
        if measured:
            raise KeyboardInterrupt
        measured.append(cell)
        return measure(*cell)

    monkeypatch.setattr(rows, "measure", once)
    assert main([*TYPED, "--output", str(tmp_path)]) == 130
    assert list(kept_rows(tmp_path)["rule"]) == [OWN]
    monkeypatch.setattr(rows, "measure", lambda *cell: measured.append(cell) or measure(*cell))
    assert main([*TYPED, "--output", str(tmp_path)]) == 0
    assert [cell[0] for cell in measured] == [OWN, "sum"]
    assert list(kept_rows(tmp_path)["rule"]) == [OWN, "sum"]
    (folder,) = tmp_path.iterdir()
    files = {path.name for path in folder.iterdir() if path.is_file()}
    wanted = {"influence.md", "influence.pdf", "influence.png", "summary.json"}
    assert wanted <= files
    said = capsys.readouterr().out
    assert "how far 2 of 14 users move rho" in said and "found than the bound = 0" in said

    def never(*cell: object) -> None:
        raise AssertionError(cell)

    monkeypatch.setattr(rows, "measure", never)
    assert main([*TYPED, "--output", str(tmp_path)]) == 0
    for changed in ("def", "abc-dirty", "unknown"):
        at_commit(monkeypatch, changed)
        with pytest.raises(RuntimeError, match=OWN):
            main([*TYPED, "--output", str(tmp_path)])
        assert main([*TYPED, "--keep", "--output", str(tmp_path)]) == 0


@pytest.mark.slow
def test_side_by_side_comes_to_the_same(tmp_path: Path) -> None:
    cells = [("sum", "l2"), ("median", "squared-l2")]
    one, two = (
        rows.rows_of(cells, TINY, 2, tmp_path / str(n), Options(jobs=n), lambda cell, left: None)
        for n in (1, 2)
    )
    assert one == two and {row.seed for row in one} == {2}
    # Another seed, another size: other rows.
    other = rows.rows_of(cells, TINY, 1, tmp_path / "1", Options(keep=True), lambda *_: None)
    assert other[0].rest_found != one[0].rest_found


def test_a_bound_that_is_broken_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "QUICK", (1, 2, 8))
    monkeypatch.setattr(measuring, "one_round", lambda *_, **__: Bound(0.1, "wrong"))
    typed = ["influence", "--quick", "--rule", "sum", "--regularizer", "l2"]
    assert main([*typed, "--output", str(tmp_path)]) == 1
    assert "FAILED  rows in which more was found than the bound = 1" in capsys.readouterr().out


def test_what_is_said_of_seeds_is_the_most_of_them(tmp_path: Path) -> None:
    first = measure("sum", "l2", TINY)
    second = replace(first, round_found=2 * first.round_found, seed=2)
    results = [{"rows": [row.kept()], "metrics": study.metrics([row])} for row in (first, second)]
    study.STUDY.draw(results, tmp_path)
    written = (tmp_path / "influence.md").read_text()
    assert f"| sum | l2 | {second.round_found:.3g} | {first.round_bound:.3g} |" in written
    assert "the largest of 2 seeds" in written
    checks = {check.name: check.passed for check in study.STUDY.checks(results)}
    assert checks == {study.BEYOND: False, "l2, sum: the bound of one round is reached": True}
    less = study.metrics([replace(first, round_found=first.round_found / 2)])
    assert not study.STUDY.checks([{"metrics": less}])[1].passed


def test_the_stored_rules_are_those_of_the_table() -> None:
    stored = json.loads((RESULTS / "influence" / "summary.json").read_text())
    said = {name.removesuffix(": at rest") for name in stored["metrics"] if ": at rest" in name}
    assert said == {f"{one}, {rule}" for rule in AGGREGATIONS for one in REGULARIZERS}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rule", "mean"], "aggregation = mean: expected "),
        (["--regularizer", "l1"], "regularizer = l1: expected "),
        (["--strategic", "7"], "--strategic 7: expected 1 to 6, of 14 users"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["influence", *words, "--output", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
    assert not list(tmp_path.iterdir())
