from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import pfl_flower as pfl
from experiments.__main__ import main
from experiments.running.options import parse_settings
from experiments.studies.catalogue import STUDIES
from experiments.studies.study import find_study
from pfl_flower.run import preset_claims
from pfl_flower.run.config import parse_config
from pfl_flower.run.preset_claims import CLAIMS, NO_CLAIM
from pfl_flower.run.presets import preset, preset_names

SMALL = ["--rounds", "3", "--set", "points-per-user=60", "evaluate-every=2"]
SMALL_FOLDER = "digits-squared-l2-with-rounds=3,points-per-user=60"


def run(*arguments: str) -> int:
    return main(["run", *arguments])


def test_every_preset_is_a_valid_run_config_and_has_claims() -> None:
    names = {
        f"{data}-{r}" for data in ("digits", "mnist") for r in ("squared-l2", "l2", "smooth-l2")
    }
    disguised = {
        f"{name}-{how}" for name in names if name.startswith("digits") for how in ("model", "data")
    }
    names |= {"mnist-cnn-l2"}
    honest = {f"{name}-honest" for name in names}
    assert set(preset_names()) == names | disguised | honest | {"many-users", "digits"}
    assert set(CLAIMS) == set(preset_names())
    for name in preset_names():
        config = parse_config(preset(name))
        assert config.name == name
        assert bool(config.strategic()) == (not name.endswith("-honest") and name != "digits")
        assert bool(CLAIMS[name]) == (name != "digits")


def test_a_preset_leaves_rows_summary_and_figures(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    code = run("digits-squared-l2", "--output", str(tmp_path), "--seeds", "1,2", *SMALL)
    assert code == 0
    folder = tmp_path / SMALL_FOLDER
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["experiment"] == "digits-squared-l2"
    assert summary["seeds"] == [1, 2]
    assert summary["passed"] is True
    assert summary["config"]["rounds"] == 3
    for key in ("versions", "commit", "device", "seconds"):
        assert summary[key]
    for name in (
        "distance_to_target",
        "accuracy_true",
        "accuracy_target",
        "rejections",
        "worst_residual",
    ):
        metric = summary["metrics"][name]
        assert len(metric["values"]) == 2
        assert metric["mean"] == pytest.approx(sum(metric["values"]) / 2)
    assert {"name", "value", "expected", "passed"} == set(summary["checks"][0])
    rows = list(csv.DictReader((folder / "rounds.csv").open()))
    assert [(row["seed"], row["round"]) for row in rows] == [
        (seed, str(t)) for seed in ("1", "2") for t in range(4)
    ]
    assert rows[2]["local_accuracy"]
    with Image.open(folder / "run.png") as image:
        assert image.size[0] > 800
    assert (folder / "run.pdf").read_bytes().startswith(b"%PDF")
    assert str(folder / "summary.json") in capsys.readouterr().out.replace("\n", "")


def test_a_changed_preset_has_no_claim_and_one_that_stands_is_judged_by_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A claim that does not hold in one of the seeds is a failed check, exit code 1."""
    arguments = "digits-squared-l2", "--output", str(tmp_path), "--keep", *SMALL
    assert run(*arguments) == 0
    assert NO_CLAIM in capsys.readouterr().out
    monkeypatch.setattr(preset_claims, "preset_of", lambda config: "digits-squared-l2")
    assert run(*arguments) == 1
    summary = json.loads((tmp_path / SMALL_FOLDER / "summary.json").read_text())
    failed = [check["name"] for check in summary["checks"] if not check["passed"]]
    assert failed == ["distance_to_target"]
    assert NO_CLAIM not in capsys.readouterr().out


BAD = [
    (["nope"], "NAME = nope: expected one of digits"),
    (["digits-l2", "--quick"], "--quick: expected a study"),
    (["thm5-single-point", "--set", "lam=1"], "NAME = thm5-single-point: expected no --set"),
    (["digits-l2", "--set", "lamm=1"], "lamm = 1: unknown key"),
    (["digits-l2", "--set", "lambda=1"], "lambda = 1: unknown key; did you mean lam?"),
    (["thm5-single-point", "--set", "lambda=1"], "lambda = 1: unknown key; did you mean lam?"),
    (["digits-l2", "--set", "lam=-1"], "lam = -1: expected greater than 0"),
    (
        ["digits-l2", "--set", "lam=1", "lam=2"],
        "--set lam=2: expected lam once, and it is given tw",
    ),
    (["digits-l2", "--set", "lam=1", "--set", "lam=1"], "--set lam=1: expected lam once"),
    (
        ["digits-l2", "--set", "batch-size=1", "batch_size=2"],
        "--set batch_size=2: expected batch_size once",
    ),
    (
        ["digits-l2", "--rounds", "5", "--set", "rounds=6"],
        "--set rounds=6: expected either this or --rounds 5, and not both",
    ),
    (
        ["digits-l2", "--device", "cpu", "--set", "device=cuda"],
        "--set device=cuda: expected either this or --device cpu, and not both",
    ),
    (["digits-l2", "--set", "rounds=1e3"], "rounds = 1e3: expected a valid integer"),
    (["digits-l2", "--set", "lam=-1e-3"], "lam = -1e-3: expected greater than 0"),
    (["digits-l2", "--set", "lam=1e999"], "lam = 1e999: expected a finite number"),
    (["digits-l2", "--set", "users=0x0"], "users = 0x0: expected greater than or equal to 1"),
    (["digits-l2", "--set", "batch-size=1_0"], "batch-size = 1_0: expected 0, for exact solves"),
    (["digits-l2", "--set", "clipping-radius=1e1"], "clipping-radius = 1e1: expected empty, unl"),
    (["digits-l2", "--set", "points-per-user=1e3"], "points-per-user = 1e3: expected sizes"),
    (["digits-l2", "--set", "points-per-user=true"], "points-per-user = true: expected sizes"),
    (
        ["digits-l2-honest", "--set", "attack=model"],
        "attack = model: expected no key of an attack, for strategic-users = none",
    ),
    (["digits-l2", "--set", "lam"], "--set lam: expected key=value"),
    (["digits-l2", "--set", "seed=3"], "--set seed=3: expected --seeds instead"),
    (["digits-l2", "--seeds", "a"], "--seeds a: expected whole numbers"),
    (["digits-l2", "--seeds", "1,1"], "--seeds 1,1: expected different numbers"),
    (["digits-l2", "--rounds", "0"], "--rounds 0: expected at least 1"),
    (["digits-l2", "--set", "points-per-user=2000"], "points-per-user = 2000: expected <= 1437"),
    (["digits-l2", "--set", "regularizer=no.such:R"], "regularizer = no.such:R: expected"),
    (["digits-l2", "--set", "server-optimizer=adam"], "server-lr = auto: expected a number"),
    (["digits-l2", "--set", "attack=my_atack:Opposite"], "attack = my_atack:Opposite: expected"),
    (["digits-l2", "--set", "attack=model", "attack-model=/nope"], "attack-model = /nope: expec"),
    (["digits-l2", "--set", "attack=data", "poisoning=nomod:f"], "poisoning = nomod:f: expected"),
    (["digits-l2", "--set", "target-shift=10"], "target-shift = 10: expected 1 to 9, for 10"),
    (["digits-l2", "--set", "aggregation=json:loads"], "aggregation = json:loads: expected a rule"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys
) -> None:  # type: ignore[no-untyped-def]
    assert run(*arguments, "--output", str(tmp_path)) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert not list(tmp_path.iterdir())


def test_cuda_where_there_is_none(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert run("digits-l2", "--device", "cuda", "--output", str(tmp_path)) == 2
    assert "device = cuda" in capsys.readouterr().err


def test_studies_are_reproduced_and_reported_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One study for one seed, kept the second time, then on the page and in the table."""
    common = ["prop1-projection", "--output", str(tmp_path)]
    assert main(["reproduce", *common, "--quick", "--seeds", "1", "--keep"]) == 0
    assert main(["reproduce", *common, "--quick", "--seeds", "1", "--keep"]) == 0
    assert "kept from before" in capsys.readouterr().out
    assert main(["report", *common]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Proposition 1" in page
    assert "data:image/png;base64," in page
    assert "prop1-projection" in (tmp_path / "report.md").read_text()


def test_a_control_passes_when_its_claims_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prop1-projection", "--control", "--seeds", "1", "--output", str(tmp_path)]
    assert run(*arguments) == 0
    assert "every claim of success failed, as it must" in capsys.readouterr().out


def test_a_study_in_which_nobody_attacks_has_no_control(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run("table1-sum-vs-mean", "--control", "--output", str(tmp_path)) == 2
    said = "--control: expected a study of an attack, and table1-sum-vs-mean has none\n"
    assert capsys.readouterr().err == said
    assert not list(tmp_path.iterdir())


def test_every_study_is_found_and_named_as_registered() -> None:
    for name in STUDIES:
        study = find_study(name)
        assert study.name == name
        assert study.title
        assert study.success or study.has_runs or study.name in NO_CONTROL
        seeds = 3 if study.has_runs else 5
        assert len(study.seeds) >= seeds or study.name in FEW_SEEDS


NO_CONTROL = {"classical", "heterogeneity", "influence", "interpolation"}
"""Studies that hold honest runs beside attacked ones themselves, or in which nobody attacks."""
FEW_SEEDS = {
    "anyone",
    "budget-curve",
    "defences",
    "equivalence-nonconvex",
    "fig17-cifar-cga",
    "heterogeneity",
    "fig18-cifar-model",
    "fig19-cifar-data",
    "influence",
    "inversion-cifar",
}
"""Figures whose runs take long; theorems have at least five seeds."""


def test_settings_are_toml_or_words() -> None:
    assert parse_settings(["a=1", "b=0.5", "c=true", 'd="x y"', "e=mnist", "f=3,4"]) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "x y",
        "e": "mnist",
        "f": "3,4",
    }


def test_the_command_line_lists_and_fails_from_the_shell() -> None:
    command = [sys.executable, "-m", "experiments"]
    listed = subprocess.run([*command, "list"], capture_output=True, text=True, check=True)
    assert "mnist-smooth-l2-honest" in listed.stdout
    failed = subprocess.run([*command, "run", "nope"], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr


@pytest.mark.slow
def test_an_idle_attacker_fails_the_claims_of_every_attack() -> None:
    """What the digits presets claim of an attack does not hold of honest users alone."""
    idle = {"strategic_users": "none", "points_per_user": 60, "evaluate_every": 0}
    for name in ("digits-squared-l2", "digits-squared-l2-model", "digits-squared-l2-data"):
        result = pfl.run(name, rounds=3, **idle)
        failed = {c.metric for c in CLAIMS[name] if not c.check([result.metrics]).passed}
        attacks = {c.metric for c in CLAIMS[name] if c.metric.startswith(("acc", "dist", "equ"))}
        assert failed == attacks - {"equilibrium_converged"}
