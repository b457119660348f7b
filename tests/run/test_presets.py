"""Presets: an attacked one and its honest twin can be compared, and only a preset claims things."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from rich.console import Console

import pfl_flower as pfl
from experiments.__main__ import main
from pfl_flower.run.attack_plans import honest_users
from pfl_flower.run.checks import Check
from pfl_flower.run.config import parse_config
from pfl_flower.run.preset_claims import CLAIMS, NO_CLAIM, claimed, preset_of
from pfl_flower.run.presets import preset, preset_names
from pfl_flower.run.problem import build_problem
from pfl_flower.run.step_sizes import server_step_sizes
from pfl_flower.run.verdict import verdict

TWINS = [name for name in preset_names() if name.endswith("-honest")]


@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_differs_in_who_is_strategic_and_in_nothing_else(twin: str) -> None:
    attacked = parse_config(preset(twin.removesuffix("-honest")))
    honest = parse_config(preset(twin))
    both = attacked.flat(), honest.flat()
    assert {key for key in both[0] if both[0][key] != both[1][key]} == {"name", "strategic-users"}
    assert attacked.strategic() == frozenset({10})
    assert not honest.strategic()


def test_every_preset_of_one_attacker_against_ten_has_a_twin() -> None:
    attacked = {name.removesuffix("-model").removesuffix("-data") for name in preset_names()}
    assert {f"{name}-honest" for name in attacked - {"many-users", "digits", *TWINS}} == set(TWINS)


@pytest.mark.parametrize("twin", [name for name in TWINS if name.startswith("digits")])
def test_the_honest_users_and_the_steps_are_the_same_in_the_twin(twin: str) -> None:
    """So that what differs between the two runs is what user 10 did."""
    names = twin.removesuffix("-honest"), twin
    keys = {"points-per-user": "30", "seed": 3}
    attacked, honest = (build_problem(parse_config({**preset(n), **keys})) for n in names)
    ten = honest_users(attacked)
    assert (*ten, 10) == honest_users(honest)
    for one, other in zip(attacked.datasets(ten), honest.datasets(ten), strict=True):
        assert torch.equal(one.features, other.features)
        assert torch.equal(one.labels, other.labels)
    steps = [server_step_sizes(p).at(7) for p in (attacked, honest)]
    assert steps[0] == steps[1]
    assert torch.equal(attacked.initial, honest.initial)


def test_the_neutral_preset_is_no_other_and_claims_nothing() -> None:
    config = parse_config(preset("digits"))
    assert (preset_of(config), claimed(config)) == ("digits", NO_CLAIM)
    assert CLAIMS["digits"] == ()
    for key, value in {"strategic-users": "10", "regularizer": "l2", "attack": "model"}.items():
        assert claimed(parse_config({**preset("digits"), key: value})) == NO_CLAIM


SMALL = ["rounds=3", "points-per-user=40", "evaluate-every=0"]
OWN = [
    ["digits", "strategic-users=none"],
    ["digits", "strategic-users=10", "attack=sign-flip"],
    ["digits-squared-l2", "aggregation=median"],
    ["digits-l2", "attack=experiments.examples.own_attack:Uncancelled"],
]


@pytest.mark.parametrize("words", OWN, ids=" ".join)
def test_a_run_of_ones_own_passes_and_says_that_nothing_was_claimed(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *settings = words
    output = ["--output", str(tmp_path)]
    assert main(["run", name, "--set", *SMALL, *settings, *output]) == 0
    said = capsys.readouterr().out
    assert "FAILED" not in said
    assert NO_CLAIM in said
    (log,) = tmp_path.glob("*/seed-1/run.log")
    folder = log.parent
    assert f"passed, {NO_CLAIM}" in log.read_text()
    assert f"passed, {NO_CLAIM}" in repr(pfl.load(folder))
    assert main(["report", *output]) == 0
    rows = (tmp_path / "report.md").read_text().splitlines()
    assert sum(f"| passed ({NO_CLAIM}) |" in row for row in rows) == 1
    assert NO_CLAIM in (tmp_path / "report.html").read_text()


def test_every_cell_of_a_sweep_says_so_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "digits", "--over", "lam=0.5,2", "--set", *SMALL, "--output", str(tmp_path)]
    assert main(words) == 0
    assert f"{NO_CLAIM}: 2 of 2 cells" in capsys.readouterr().out


def test_the_last_table_of_a_run_names_what_failed() -> None:
    """It is what ``flwr run`` shows."""
    from pfl_flower.run.conclusion import table
    from pfl_flower.run.outcome import Course, Outcome

    config = parse_config({"rounds": 3, "lam": 2.0})
    text = "round,norm_rho,unconverged,accuracy_true\n0,0.0,,0.1\n1,1.0,2,0.2\n"
    course = Course(text=text, rho=torch.zeros(1), gradient=torch.zeros(1))
    said = table(Outcome(config=config, course=course, device=torch.device("cpu"), seconds=1.0))
    said = " ".join(said.replace("│", " ").split())
    for words in ("FAILED: rounds", "failed: rounds = 1, expected == 3", NO_CLAIM):
        assert words in said
    assert "failed: unconverged_total = 2, expected == 0" in said


def test_a_verdict_names_every_failed_check() -> None:
    checks = [Check("a", 1, "", False), Check("b", 1, "", True), Check("c", 1, "", False)]
    assert verdict(checks, "those of the preset digits-l2") == "FAILED: a, c"
    assert verdict(checks[1:2], "those of the preset digits-l2") == "passed"


def test_in_the_control_the_words_and_colours_say_that_failing_is_the_point() -> None:
    from experiments.running.preset_runs import show

    checks = [Check("gap", 1.0, "<= 0", False), Check("near", 1.0, "", False)]
    checks += [Check("held", 1.0, "", True), Check("size", 1.0, "", True)]
    summary = {
        "experiment": "x",
        "metrics": {},
        "checks": [asdict(check) for check in checks],
        "control": True,
        "success": ["gap", "held"],
        "passed": False,
    }
    console = Console(record=True, width=120, color_system="standard", force_terminal=True)
    show(summary, Path(__file__).parent, console)
    styled = console.export_text(styles=True, clear=False)
    for line in (
        "\x1b[32mfails without the attack, as it must\x1b[0m  gap",
        "\x1b[33mfails, not counted in the control\x1b[0m  near",
        "\x1b[31mHOLDS without the attack\x1b[0m  held",
        "\x1b[32mpassed\x1b[0m  size",
    ):
        assert line in styled
    assert "FAILED" not in styled


@pytest.mark.parametrize("name", [name for name in preset_names() if CLAIMS[name]])
def test_every_claim_of_a_preset_can_fail(name: str) -> None:
    for claim in CLAIMS[name]:
        met = next(v for v in (1.0, 0.0) if claim.limits.admit(v))
        final = {str(claim.metric): met}
        assert claim.check([final]).passed
        for value in (1e9, -1e9):
            if not claim.limits.admit(value):
                break
        assert not claim.check([{**final, str(claim.metric): value}]).passed
        assert not claim.check([{}]).passed
