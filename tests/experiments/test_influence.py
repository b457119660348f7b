"""``influence``: of no rule is more found than its bound; the command keeps what it measures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.__main__ import main
from experiments.influence import command, measuring
from experiments.influence.measuring import Size, measure
from experiments.running import preset_runs
from pfl_flower.aggregation.influence import Bound
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.run.columns import Table

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
    for module in (measuring, preset_runs):
        monkeypatch.setattr(module, "commit", lambda: name)


def test_the_command_goes_on_with_what_it_has_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "QUICK", (1, 4, 8))
    at_commit(monkeypatch, "abc")
    assert main([*TYPED, "--output", str(tmp_path)]) == 0
    first = capsys.readouterr().out
    kept = Table.from_csv((tmp_path / "influence" / "influence.csv").read_text())
    assert list(kept["rule"]) == [OWN, "sum"]
    assert {path.suffix for path in (tmp_path / "influence").iterdir()} == {".csv", ".png", ".pdf"}

    def never(*cell: object) -> None:
        raise AssertionError(cell)

    monkeypatch.setattr(command, "measure", never)
    assert main([*TYPED, "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == first
    with pytest.raises(AssertionError):
        main([*TYPED, "--fresh", "--output", str(tmp_path)])
    for changed in ("def", "abc-dirty", "unknown"):
        at_commit(monkeypatch, changed)
        with pytest.raises(AssertionError):
            main([*TYPED, "--output", str(tmp_path)])
        assert main([*TYPED, "--keep", "--output", str(tmp_path)]) == 0


def test_a_bound_that_is_broken_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "QUICK", (1, 2, 8))
    monkeypatch.setattr(measuring, "one_round", lambda *_, **__: Bound(0.1, "wrong"))
    typed = ["influence", "--quick", "--rule", "sum", "--regularizer", "l2"]
    assert main([*typed, "--output", str(tmp_path)]) == 1
    assert "failed: sum, l2: found beyond the bound" in capsys.readouterr().out


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
