from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from experiments.__main__ import KEPT, main
from experiments.running import sweep_command
from experiments.running.options import parse_over, parse_seeds
from pfl_flower.support.errors import ConfigError

TINY = [
    *("--set", "dataset=synthetic-logistic", "features=6", "users=5", "strategic-users=4"),
    *("points-per-user=20", "nu=0.1", "evaluate-every=0"),
]
OVER = ["--over", "lam=0.1,1,10", "--over", "regularizer=l2,smooth-l2", "--seeds", "1-2"]


def test_a_sweep_ends_with_a_table_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", "digits-l2", *OVER, "--rounds", "2", *TINY, "--output", str(tmp_path)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "±" in said and "smooth-l2" in said and "12 cells, 0 broke off" in said
    (folder,) = tmp_path.glob("digits-l2-with-*rounds=2*-over-lam-regularizer")
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [(row["lam"], row["regularizer"], row["seed"]) for row in rows[:3]] == [
        ("0.1", "l2", "1"),
        ("0.1", "l2", "2"),
        ("0.1", "smooth-l2", "1"),
    ]
    with Image.open(folder / "sweep.png") as image:
        assert image.size[0] > 800
    assert (folder / "lam=10,regularizer=l2" / "seed-1" / "rounds.csv").exists()
    assert main(arguments) == 0
    assert "kept from before: 12 of 12 cells" in capsys.readouterr().out
    assert main(["compare", str(folder), "--output", str(tmp_path / "side")]) == 0
    said = capsys.readouterr().out
    assert "regularizer" in said and "distance to target" in said
    assert (tmp_path / "side" / "compare.png").exists()


def test_cells_that_fail_are_counted_and_are_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over = ["--over", "server-lr-factor=1,1e6", "--rounds", "40"]
    arguments = ["sweep", "digits-squared-l2", *over, "--output", str(tmp_path), *TINY]
    assert main([*arguments, "aggregation=tests.run.test_sweeps:broken"]) == 1
    said = capsys.readouterr().out
    assert "2 cells, 2 broke off" in said
    assert "server-lr-factor = 1, seed 1: ConfigError: aggregation" in said
    assert main(arguments) == 1
    said = capsys.readouterr().out
    assert "server-lr-factor = 1e+06, seed 1: a check failed" in said
    assert "0 broke off, 1 did not pass their checks" in said


def test_an_interrupt_is_one_line_and_its_own_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pfl_flower.api.sweep", interrupted)
    assert main(["sweep", "digits-l2", *OVER, "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err == f"interrupted: {KEPT}\n"


BAD = [
    (["sweep", "nope", *OVER], "PRESET = nope: expected one of digits, digits-l2"),
    (["sweep", "digits-l2"], "--over: expected KEY=VALUE,VALUE,..., at least once"),
    (["sweep", "digits-l2", "--over", "lam"], "--over lam: expected KEY=VALUE,VALUE,..."),
    (["sweep", "digits-l2", "--over", "lam=1,-2"], "lam = -2: expected greater than 0"),
    (["sweep", "digits-l2", "--over", "lamm=1"], "lamm = 1: unknown key"),
    (["sweep", "digits-l2", "--over", "seed=1"], "--over seed=1: expected --seeds instead"),
    (["sweep", "digits-l2", *OVER, "--jobs", "0"], "--jobs 0: expected at least 1"),
    (["sweep", "digits-l2", *OVER, "--seeds", "3-1"], "--seeds 3-1: expected at least one"),
    (["sweep", "digits-l2", *OVER, "--set", "lam=2"], "--set lam=2: expected no key of --over"),
    (["compare", "/no/such/folder"], "DIR = /no/such/folder: expected a folder"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_values_are_toml_or_words() -> None:
    assert parse_over(["lam=0.1,1", "mixing=true,false", "attack=cga,my.module:Attack"]) == {
        "lam": [0.1, 1],
        "mixing": [True, False],
        "attack": ["cga", "my.module:Attack"],
    }
    assert parse_over(['points-per-user="60,10","500"'])["points-per-user"] == ["60,10", "500"]
    assert parse_seeds("5,1-3") == (5, 1, 2, 3)
    with pytest.raises(ConfigError, match="--seeds 1-3,2: expected different"):
        parse_seeds("1-3,2")
    assert sweep_command.sweep.__doc__
