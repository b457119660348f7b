"""The study of attacks against rules: its plan, what is said of a rule, one's own among them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

import pfl_flower as pfl
from experiments.__main__ import main
from experiments.defences import cells as running
from experiments.defences import labels, spread, study
from experiments.defences import leaderboard as board
from experiments.defences.cells import Cells
from experiments.defences.document import report
from experiments.defences.estimate import Forecast
from experiments.defences.judgement import BROKE, UNSOUND, metrics, of_row, verdict
from experiments.defences.plan import (
    ATTACKS,
    ELSEWHERE,
    QUICK_RULES,
    RULES,
    SCENES,
    SIDE,
    Cell,
    Plan,
    rule_of,
)
from experiments.defences.presentation import draw
from experiments.defences.study import STUDY
from experiments.defences.tables import averaged, means, shown, verdicts
from experiments.running.options import Options
from experiments.studies.measuring import run_study
from experiments.studies.study import Setting
from experiments.studies.wording import Measured
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.attacks.table import ATTACKS as EVERY_ATTACK
from pfl_flower.run.columns import Table as Columns
from pfl_flower.run.config import parse_config
from pfl_flower.run.personalization import WAYS
from pfl_flower.run.results import summarise
from pfl_flower.support.errors import ConfigError
from tests.support.studies import run_quick

FIRST = "squared-l2/iid"


def cell(accuracy: float, share: float = 0.0, **more: Any) -> dict[str, Any]:
    own = {"theta": accuracy, "worst": accuracy - 0.1, "own rho": accuracy, "hacked": 0.0}
    return {"accuracy": accuracy, "share": share, "left": abs(1 - share), **own, **more}


def made_up() -> dict[str, Any]:
    """Return cells in which everything is as the study claims."""
    scene = {
        "none": {"sum": cell(0.96), "Krum": cell(0.90)},
        "CGA": {"sum": cell(0.01, 1.0), "Krum": cell(0.89, 0.03)},
        "mimic": {"sum": cell(0.95), "Krum": cell(0.85, 0.0)},
        "rule-aware": {"sum": cell(0.01, 1.0), "Krum": cell(0.70, 0.25)},
    }
    return copy.deepcopy({FIRST: scene, "l2/iid": scene})


def judged(cells: dict[str, Any]) -> set[str]:
    """Return the names of the checks that fail."""
    found = STUDY.checks([{"cells": cells, "metrics": metrics(cells)}])
    return {check.name for check in found if not check.passed}


def result(cells: dict[str, Any], seed: int = 1) -> dict[str, Any]:
    return {"cells": cells, "metrics": metrics(cells), "asked": {"seed": seed}}


def test_every_attack_and_every_rule_is_in_the_plan() -> None:
    attacks = {attack.keys.get("attack") for attack in ATTACKS.values()} - {None}
    assert attacks == set(EVERY_ATTACK) - set(ELSEWHERE)
    assert {rule.keys["aggregation"] for rule in RULES.values()} == set(AGGREGATIONS)
    knowledge = {
        name: {a.knowledge for a in ATTACKS.values() if a.keys.get("attack") == name}
        for name in attacks
    }
    for name, levels in knowledge.items():
        best = "omniscient" if "omniscient" in EVERY_ATTACK[name].knows else None
        assert best is None or best in levels
    assert knowledge["rule-aware"] == {"rule", "omniscient"}
    assert knowledge["cga"] == {"own", "omniscient"}


def test_the_plan_crosses_what_it_should_and_changes_one_thing_at_a_time() -> None:
    plan = Plan.of()
    assert len(set(plan.cells)) == len(plan.cells)
    sizes = {name: sum(cell.scene == name for cell in plan.cells) for name in SCENES}
    crossed = {(s.regularizer, s.alpha) for s in SCENES.values() if s.crossed}
    assert crossed == {(r, a) for r in ("squared-l2", "l2") for a in ("iid", "0.3")}
    for name, scene in SCENES.items():
        rules = 1 if scene.personalization == "local" else len(RULES)
        assert sizes[name] == (len(ATTACKS) if scene.crossed else len(SIDE)) * rules
        if not scene.crossed:
            apart = [
                (scene.regularizer != r) + (scene.alpha != a) + (scene.personalization != "joint")
                for r, a in crossed
            ]
            assert min(apart) == 1
    assert {s.alpha for s in SCENES.values()} == {"iid", "1", "0.3", "0.1"}
    assert {s.regularizer for s in SCENES.values()} == {"squared-l2", "l2", "smooth-l2"}
    assert {s.personalization for s in SCENES.values()} == set(WAYS)
    assert all(first.attack == "none" for first in _firsts(plan))
    assert set(SIDE) <= set(ATTACKS) and any(ATTACKS[name].told for name in SIDE)
    quick = Plan.of(quick=True)
    assert set(quick.cells) <= set(plan.cells) and len(quick.cells) < 50


def _firsts(plan: Plan) -> Iterator[Cell]:
    for name in SCENES:
        yield next(cell for cell in plan.cells if cell.scene == name)


def test_every_cell_can_be_run() -> None:
    plan = Plan.of()
    for one in plan.cells:
        parse_config(plan.keys(one))
        assert "attack" not in plan.keys(one, control=True)


def test_scenes_are_chosen_by_name_and_the_first_is_always_there() -> None:
    assert {c.scene for c in Plan.of(scenes="l2/0.3").cells} == {FIRST, "l2/0.3"}
    assert all(SCENES[c.scene].crossed for c in Plan.of(scenes="crossed").cells)
    with pytest.raises(ConfigError, match=r"--scenes l2/7: expected crossed, or of squared-l2/iid"):
        Plan.of(scenes="l2/0.3,l2/7")


def test_ones_own_rule_meets_every_attack_of_the_crossed_scenes() -> None:
    plan = Plan.of(own=rule_of("m:mine", "m:mine"))
    assert set(plan.rules) == {"sum", "m:mine"}
    assert {c.attack for c in plan.cells if c.rule == "m:mine"} == set(ATTACKS)
    assert {c.attack for c in plan.cells if c.rule == "sum"} == {"none"}
    assert plan.keys(plan.cells[-1])["aggregation-tolerance"] == 2
    quick = Plan.of(quick=True, own=rule_of("m:mine", "m:mine"))
    assert {c.rule for c in quick.cells if c.attack == "CGA"} == {*QUICK_RULES, "m:mine"}


def test_a_rule_is_judged_by_its_worst_case_over_all_attackers() -> None:
    said = verdict(made_up()[FIRST], "Krum")
    assert said.calm == 0.90 and said.cost == pytest.approx(0.06)
    assert said.harm == pytest.approx(0.20) and said.untold_harm == pytest.approx(0.01)
    assert (said.share, said.untold_share, said.told_share) == (0.25, 0.03, 0.25)
    assert said.theta_harm == pytest.approx(0.20)
    assert said.worst_calm == pytest.approx(0.8) and said.worst == pytest.approx(0.6)
    open_case = verdict(made_up()[FIRST], "sum")
    assert open_case.harm == pytest.approx(0.95) == open_case.untold_harm and open_case.cost == 0


def test_what_is_no_number_is_the_worst_and_what_broke_off_is_counted() -> None:
    cells = made_up()[FIRST]
    cells["mimic"]["Krum"] = cell(math.nan, math.nan)
    assert verdict(cells, "Krum").harm == math.inf == verdict(cells, "Krum").share
    cells["mimic"]["Krum"] = {"error": "ValueError: no"}
    assert verdict(cells, "Krum").harm == pytest.approx(0.20)
    cells["CGA"]["Krum"] = cell(0.89, 0.03, unsound="rounds")
    found = metrics({FIRST: cells})
    assert (found[BROKE], found[UNSOUND], found["runs"]) == (1, 1, 8)


def test_an_attack_that_helps_does_no_harm() -> None:
    cells = made_up()[FIRST]
    for attack in ("CGA", "mimic", "rule-aware"):
        cells[attack]["Krum"] = cell(0.99, -0.3)
    said = verdict(cells, "Krum")
    assert said.harm == 0 and said.share == 0 and said.theta_harm == 0


def test_a_run_is_measured_from_the_same_rule_without_an_attack() -> None:
    calm = {"rho": [1.0, 0.0], "target": [3.0, 0.0]}
    row = {
        "rho": [2.0, 1.0],
        "target": [3.0, 0.0],
        "accuracy": 0.5,
        "hacked": 0.1,
        "users": [0.2, 0.6],
        "own_rho": 0.3,
        "unsound": ["finite", "rounds"],
    }
    found = of_row(row, calm)
    assert found["share"] == 0.5 and found["left"] == pytest.approx(2**0.5 / 2)
    assert found["theta"] == 0.4 and found["worst"] == 0.2
    # That rho is finite is what an attack may take; that all rounds were done is not.
    assert found["unsound"] == "rounds"
    assert math.isnan(float(of_row(row, None)["share"]))
    assert of_row({"error": "x"}, calm) == {"error": "x"}


def test_what_is_claimed_passes_as_claimed() -> None:
    assert judged(made_up()) == set()


@pytest.mark.parametrize(
    ("where", "value", "failing"),
    [
        (("CGA", "sum"), cell(0.01, 0.9), f"{FIRST}, sum: CGA reaches"),
        (("none", "sum"), cell(0.8), f"{FIRST}, sum: learns"),
        (("mimic", "Krum"), {"error": "OSError: gone"}, BROKE),
        (("mimic", "Krum"), cell(0.9, unsound="rounds"), UNSOUND),
        (("rule-aware", "Krum"), cell(0.9, 0.0), "share of the told"),
    ],
)
def test_each_claim_can_fail(where: tuple[str, str], value: dict[str, Any], failing: str) -> None:
    cells = made_up()
    cells[FIRST][where[0]][where[1]] = value
    assert any(name.startswith(failing) for name in judged(cells))


def test_the_claim_that_the_sum_is_ruined_can_fail() -> None:
    cells = made_up()
    for attack in ("CGA", "rule-aware"):
        cells[FIRST][attack]["sum"] = cell(0.5, 1.0)
    assert f"{FIRST}, sum: some attack ruins the model" in judged(cells)


def test_the_words_are_of_the_numbers() -> None:
    values = {name: [value] for name, value in metrics(made_up()).items()}
    said = STUDY.words(Measured(values))
    for number in ("100%", "3.0%", "25.0%", "20.0%", "6.0%"):
        assert number in said
    open_alone = {name: of for name, of in values.items() if not name.startswith("l2/")}
    assert "under l2" in said and "under l2" not in STUDY.words(Measured(open_alone))


class Fake:
    """Seconds of runs that nobody made."""

    def __init__(self, plan: Plan, seconds: dict[tuple[str, str], float]) -> None:
        self.plan, self.slowness, self._seconds = plan, 1.0, seconds

    def row(self, one: Cell) -> dict[str, float] | None:
        seconds = self._seconds.get((one.attack, one.rule))
        # By the clock it waited for others' work.
        return None if seconds is None else {"seconds": 70 * seconds, "processor": seconds}


def test_the_estimate_is_made_of_one_timed_run_of_each_kind() -> None:
    plan = Plan.of(quick=True)
    timed = {
        ("none", "sum"): 1.0,
        ("none", "median"): 2.0,
        ("none", "Multi-Krum"): 3.0,
        ("rule-aware", "sum"): 3.0,
        ("rule-aware", "median"): 6.0,
        ("rule-aware", "Multi-Krum"): 11.0,
        ("CGA", "median"): 2.5,
        ("fitted inner product", "median"): 4.0,
    }
    forecast = Forecast(Fake(plan, timed))  # type: ignore[arg-type]
    assert {(c.attack, c.rule) for c in forecast.kinds()} == set(timed)
    assert {c.scene for c in forecast.kinds()} == {FIRST}
    scene = "squared-l2/0.3"
    assert forecast.seconds(Cell(scene, "CGA", "Multi-Krum")) == 3.5
    # Two seconds of questions under the median, and Multi-Krum takes twice as long over them.
    assert forecast.seconds(Cell(scene, "fitted inner product", "Multi-Krum")) == 3 + 2 * 2
    assert forecast.total(plan.cells) == pytest.approx(3 * (sum(timed.values()) + 14.0))
    forecast.cells.slowness = 1.5  # type: ignore[misc]
    assert forecast.total(plan.cells) == pytest.approx(4.5 * (sum(timed.values()) + 14.0))


def test_how_long_others_made_a_kept_run_wait_is_not_in_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of 0.2 s that was once measured in 14 s, beside others' work, said hours of minutes."""

    def at(slowness: float) -> Forecast:
        took = {"seconds": 0.2 * slowness, "processor": 0.2}
        monkeypatch.setattr(running, "play", lambda k, h: {**ROW, "users": [0.5] * 10, **took})
        cells = tiny(tmp_path)
        cells.run(TINY[: len(cells.rows) + 2], 1, lambda one: None)
        assert cells.slowness == pytest.approx(slowness)
        return Forecast(cells)

    at(70.0)
    assert at(1.1).total(TINY) == pytest.approx(4 * 0.2 * 1.1)
    # Nothing was run in this sitting: as on a machine where nothing else runs.
    assert Forecast(tiny(tmp_path)).total(TINY) == pytest.approx(4 * 0.2)


TINY = tuple(Cell(FIRST, attack, rule) for attack in ("none", "CGA") for rule in ("sum", "median"))


def tiny(folder: Path, **more: Any) -> Cells:
    options = Options(output=folder, keep=True, rounds=2, **more)
    setting = Setting(seed=1, folder=folder / "seed-1", options=options)
    return Cells(setting, Plan(TINY, RULES))


def test_rows_are_kept_as_they_are_measured_and_a_cut_off_run_goes_on(tmp_path: Path) -> None:
    first, ended = tiny(tmp_path), []

    def stop(one: Cell) -> None:
        ended.append(one)
        if len(ended) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(TINY, 1, stop)
    rows = tmp_path / "seed-1" / running.ROWS_FILE
    assert len(rows.read_text().splitlines()) == 2
    with rows.open("a") as file:
        file.write('{"asked": "cut o')
    again = tiny(tmp_path)
    assert again.waiting(TINY) == list(TINY[2:])
    again.run(TINY, 1, ended.append)
    assert ended == list(TINY) and not tiny(tmp_path).waiting(TINY)
    row = again.row(TINY[1])
    assert row is not None and row["cell"] == list(TINY[1]) and not row["unsound"]
    assert 0 < row["processor"] < 60 and 0 < again.slowness < 1000
    assert len(row["rho"]) == len(row["target"]) == 170 and len(row["users"]) == 10
    # Other settings are another run; another place is not.
    assert len(tiny(tmp_path, settings={"lam": 0.5}).waiting(TINY)) == 4


def test_a_row_is_what_a_run_by_itself_comes_to(tmp_path: Path) -> None:
    cells = tiny(tmp_path)
    cells.run(TINY, 1, lambda one: None)
    for one in TINY[1:3]:
        row, keys = cells.row(one), cells.asked(one)[0]
        alone = pfl.run(**{key.replace("-", "_"): value for key, value in keys.items()})
        assert row and row["rho"] == alone.rho.tolist()
        assert row["accuracy"] == alone.metrics["accuracy_true"]


def test_a_cut_off_line_costs_itself_alone(tmp_path: Path) -> None:
    """What is written next begins a line of its own."""
    rows = tmp_path / "seed-1" / running.ROWS_FILE
    rows.parent.mkdir()
    rows.write_text('{"asked": "cut o')
    cells = tiny(tmp_path)
    cells.run(TINY[:1], 1, lambda one: None)
    assert not tiny(tmp_path).waiting(TINY[:1])


def test_in_the_control_all_attacks_are_one_run(tmp_path: Path) -> None:
    setting = Setting(seed=1, folder=tmp_path, options=Options(output=tmp_path), control=True)
    assert Cells(setting, Plan(TINY, RULES)).waiting(TINY) == list(TINY[:2])


@pytest.mark.slow
def test_side_by_side_comes_to_the_same(tmp_path: Path) -> None:
    one, two = tiny(tmp_path / "one"), tiny(tmp_path / "two")
    one.run(TINY, 1, lambda cell: None)
    two.run(TINY, 2, lambda cell: None)
    for cell_ in TINY:
        mine, other = one.row(cell_), two.row(cell_)
        assert mine and other and mine["rho"] == other["rho"] and mine["users"] == other["users"]


def test_a_run_that_breaks_off_is_shown_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def play(keys: Any, honest: Any) -> dict[str, Any]:
        if keys["aggregation"] == "median" and keys["strategic-users"] != "none":
            raise RuntimeError("the disk\nis on fire")
        return {**ROW, "users": [0.5] * 10}

    monkeypatch.setattr(running, "play", play)
    monkeypatch.setattr(Plan, "of", lambda **_: Plan(TINY, RULES))
    options = Options(output=tmp_path, seeds=(1,), keep=True)
    summary = run_study(STUDY, options, Console(quiet=True))
    assert not summary["passed"]
    assert BROKE in {check["name"] for check in summary["checks"] if not check["passed"]}
    written = (tmp_path / "defences" / "defences.md").read_text()
    assert f"* {FIRST}, CGA, median, seed 1: broke off: RuntimeError: the disk" in written
    assert "broke off |" in written and "is on fire" in capsys.readouterr().out


ROW: dict[str, Any] = {
    "rho": [0.0, 0.0],
    "target": [1.0, 0.0],
    "accuracy": 0.95,
    "hacked": 0.0,
    "own_rho": 0.9,
    "seconds": 1.0,
    "unsound": [],
}


def test_the_estimate_is_printed_first_and_a_seed_is_one_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "play", lambda keys, honest: {**ROW, "users": [0.5] * 10})
    monkeypatch.setattr(Plan, "of", lambda **_: Plan(TINY, RULES))
    said: list[str] = []
    setting = Setting(seed=3, folder=tmp_path, options=Options(output=tmp_path), tell=said.append)
    found = STUDY.measure(setting)
    assert len(said) == 1 and said[0].startswith("defences, seed 3: 4 runs; by one timed run of")
    assert found["cells"][FIRST]["CGA"]["sum"]["accuracy"] == 0.95
    with pytest.raises(ConfigError, match="--engine simulation: expected inprocess"):
        STUDY.measure(Setting(seed=1, options=Options(engine="simulation", output=tmp_path)))


def test_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worse = made_up()
    worse[FIRST]["rule-aware"]["Krum"] = cell(0.60, 0.27)
    results = [result(made_up()), result(worse, 2)]
    assert means(results, FIRST)["rule-aware"]["Krum"]["accuracy"] == pytest.approx(0.65)
    assert averaged(verdicts(results, FIRST)["Krum"]).harm == pytest.approx(0.25)
    draw(results, tmp_path)
    for name in ("defences", "defences-squared-l2-iid", "defences-l2-iid"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 300
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    written = (tmp_path / "defences.md").read_text()
    assert written.startswith("# Rules and attackers: means of 2 seeds")
    assert "| Krum | 0.90 | 0.060 | 0.250 | rule-aware | 0.26 | rule-aware | 0.03 |" in written
    assert "| rule-aware [omniscient] | 0.01 (1.00) | 0.65 (0.26) |" in written
    assert "rule-aware" in capsys.readouterr().out
    head = f"## {FIRST}: each rule's place for seeds 1, 2, and means (least to most)"
    lines = written.splitlines()
    spread = lines[lines.index(head) :]
    krum = next(line for line in spread if line.startswith("| Krum |"))
    assert krum.startswith("| Krum | 1, 1 | 0.310 (0.260 to 0.360) | 0.060 (0.060 to 0.060) | 0.2")


def test_a_rule_s_place_is_told_for_each_seed() -> None:
    better = made_up()
    better[FIRST]["none"]["sum"] = cell(0.96)
    for attack in ("CGA", "mimic", "rule-aware"):
        better[FIRST][attack]["sum"] = cell(0.95)
    rows = spread.of_seeds([result(made_up()), result(better, 2), result(better, 3)], FIRST)
    places = {row[0]: row[1] for row in rows}
    assert places == {"sum": "2, 1, 1", "Krum": "1, 2, 2"}
    # By the mean over the seeds, which is what the table of means is sorted by.
    assert [row[0] for row in rows] == ["Krum", "sum"]


def test_no_number_of_a_picture_lies_on_another_or_on_a_point() -> None:
    points = [(100.0 + 2 * (i % 4), 100.0 + i) for i in range(17)] + [(199.0, 199.0)]
    texts, size = [str(i + 1) for i in range(18)], (200.0, 200.0)
    moved = labels.offsets(points, texts, size)
    middles = [(x + dx, y + dy) for (x, y), (dx, dy) in zip(points, moved, strict=True)]
    for i, (x, y) in enumerate(middles):
        wide = labels.WIDTH * len(texts[i])
        assert wide / 2 <= x <= 200 - wide / 2 and labels.HEIGHT / 2 <= y <= 200
        for j, (u, v) in enumerate(middles[:i]):
            apart = (wide + labels.WIDTH * len(texts[j])) / 2
            assert abs(x - u) >= apart - 1e-9 or abs(y - v) >= labels.HEIGHT - 1e-9
        for u, v in points:
            across, up = (wide + labels.DOT) / 2, (labels.HEIGHT + labels.DOT) / 2
            assert abs(x - u) >= across - 1e-9 or abs(y - v) >= up - 1e-9
    # Where there is no room a number lies on its point, and none leaves the frame.
    assert labels.offsets([(3.0, 3.0)], ["1"], (6.0, 6.0)) == [(0.0, 0.0)]


def test_scenes_of_fewer_seeds_are_told_as_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = made_up(), made_up()
    second["smooth-l2/iid"] = {name: second[FIRST][name] for name in ("none", "CGA")}
    del second["l2/iid"]
    second[FIRST]["none"]["Krum"] = cell(0.80)
    results = [result(first), result(second, 2)]
    draw(results, tmp_path)
    written = (tmp_path / "defences.md").read_text()
    assert f"## {FIRST}: means of 2 seeds" in written and "## l2/iid: one seed, 1" in written
    assert (
        f"| rule | {FIRST}: means of 2 seeds | l2/iid: one seed, 1 | smooth-l2/iid: one seed, 2 |"
        in written
    )
    lacking = "Not measured yet: 1 of 3 seeds of squared-l2/iid; 3 of 3 seeds of squared-l2/0.3,"
    assert lacking in written and lacking in capsys.readouterr().out
    rows = Columns.from_csv((tmp_path / "defences.csv").read_text())
    assert len(rows) == 8 + 8 + 8 + 4 and set(rows["seed"]) == {1, 2}
    found = [one["metrics"] for one in results]
    summary = summarise(
        experiment="", config={}, seeds=(1, 2), finals=found, checks=(), device="cpu", seconds=0.0
    )
    said = STUDY.words(Measured.of(summary))
    assert said.endswith("Measured so far: 4 of 39 scenes, counting seeds.")
    assert "2 of 3 seeds of l2/iid, smooth-l2/iid" in written


def test_what_is_there_so_far_is_said_of_whole_scenes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = tuple(one._replace(scene="smooth-l2/iid") for one in TINY)
    monkeypatch.setattr(Plan, "of", lambda **_: Plan((*TINY, *sides), RULES))
    folder = tmp_path / "defences"
    typed = ["defences", "--so-far", "--keep", "--seeds", "1", "--output", str(tmp_path)]
    assert main(typed) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"--so-far: expected all runs of {FIRST} for seed 1, or no --so-far"

    def cells() -> Cells:
        options = Options(output=tmp_path, keep=True)
        setting = Setting(seed=1, folder=folder / "seed-1", options=options)
        return Cells(setting, Plan((*TINY, *sides), RULES))

    cells().run([*TINY, *sides[:3]], 1, lambda one: None)
    assert main(typed) in (0, 1)
    kept = json.loads((folder / "seed-1" / "result.json").read_text())
    assert set(kept["cells"]) == {FIRST} and kept["metrics"]["runs"] == 4
    # What was said of fewer runs is not kept.
    cells().run(sides, 1, lambda one: None)
    assert main(typed) in (0, 1)
    kept = json.loads((folder / "seed-1" / "result.json").read_text())
    assert set(kept["cells"]) == {FIRST, "smooth-l2/iid"}


def test_scenes_at_the_sides_have_a_table_of_their_own() -> None:
    cells = made_up()
    cells["smooth-l2/iid"] = {name: cells[FIRST][name] for name in ("none", "rule-aware")}
    alone = {name: {"sum": cells[FIRST][name]["sum"]} for name in ("none", "rule-aware")}
    cells["squared-l2/0.3/local"] = alone
    written = "\n".join(report([result(cells)]))
    assert "each rule's place" not in written
    assert written.startswith("# Rules and attackers: one seed, 1")
    assert f"| Krum |{3 * ' 0.060, 0.200 (0.25) |'}  |" in written
    assert "## smooth-l2/iid" not in written


def middle(rows: Tensor, *, tolerance: int = 0) -> Tensor:
    """A rule of one's own."""
    return len(rows) * rows.median(dim=0).values


def halved(rows: Tensor) -> Tensor:
    """Another, which asks for no f."""
    return rows.sum(dim=0) / 2


def short(rows: Tensor) -> Tensor:
    """No rule: a direction of two numbers."""
    return torch.zeros(2, dtype=rows.dtype)


def broken_rule(rows: Tensor) -> Tensor:
    """No rule either."""
    raise KeyError("nothing there")


HERE = "tests.experiments.test_defences"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rule", "krum"], "--rule krum: expected one of your own, and it is in the table"),
        (["--rule", "no.such:rule"], "aggregation = no.such:rule: expected"),
        (["--rule", "nothing"], "aggregation = nothing: expected"),
        (["--rule", f"{HERE}:short"], f"aggregation = {HERE}:short: expected"),
        (["--rule", f"{HERE}:broken_rule"], f"aggregation = {HERE}:broken_rule: expected"),
        (["--jobs", "0"], "--jobs 0: expected at least 1"),
        (["--scenes", "l2/7"], "--scenes l2/7: expected crossed, or of"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_run(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["defences", *arguments, "--output", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(said) and told.err.count("\n") == 1 and not told.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["middle", "halved"])
def test_ones_own_rule_is_ranked_among_the_others(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"{HERE}:{name}"
    kept = {
        "config": {"quick": False},
        "seeds": [2],
        "metrics": {name: {"values": [value]} for name, value in metrics(made_up()).items()},
    }
    (tmp_path / "defences").mkdir()
    (tmp_path / "defences" / "summary.json").write_text(json.dumps(kept))
    cells = tuple(Cell(FIRST, a, r) for a, r in (("none", "sum"), ("none", place), ("CGA", place)))
    monkeypatch.setattr(study.Plan, "of", lambda **asked: Plan(cells, {**RULES, **own(asked)}))

    def own(asked: dict[str, Any]) -> dict[str, Any]:
        return {place: asked["own"]} if asked.get("own") else {}

    assert main(["defences", "--rule", place, "--output", str(tmp_path)]) == 0
    (folder,) = (one for one in tmp_path.iterdir() if "with-rule" in one.name)
    written = (folder / "leaderboard.md").read_text()
    order = [line.split(" | ")[1] for line in written.splitlines() if line.startswith("| ")][1:]
    assert place in order and {"sum", "Krum"} <= set(order) and order[-1] == "sum"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seeds"] == [2] and summary["passed"]
    assert (folder / "leaderboard.png").exists() and place in capsys.readouterr().out


def test_a_ranking_puts_the_least_lost_first_and_what_is_no_number_last() -> None:
    def said(cost: float, harm: float) -> list[Any]:
        values = {f"s, r: {words}": [0.0] for _, words in board.SAID}
        values |= {"s, r: cost": [cost], "s, r: worst harm": [harm]}
        return board.from_metrics(values, "s, r")

    rows = board.ranking({"a": said(0.1, 0.2), "b": said(0.0, 0.1), "c": said(0.0, math.nan)})
    assert [row[:2] for row in rows] == [["1", "b"], ["2", "a"], ["3", "c"]]


def test_the_stored_rules_are_those_of_the_table() -> None:
    others = board.Others.of(Options(output=Path("/nowhere")))
    assert others.seeds == STUDY.seeds and set(others.of_scene(FIRST)) == set(RULES)
    assert not any(others.among(others.seeds).left_out(scene) for scene in SCENES)


def others_of_two_seeds(folder: Path) -> None:
    """Write a summary of seeds 2 and 3; the last did not come to Krum in the first scene."""
    values = {name: [value, value + 1] for name, value in metrics(made_up()).items()}
    for name in values:
        if name.startswith(f"{FIRST}, Krum: "):
            values[name] = values[name][:1]
    kept = {
        "config": {"quick": False},
        "seeds": [2, 3],
        "metrics": {name: {"values": of} for name, of in values.items()},
    }
    (folder / "defences").mkdir()
    (folder / "defences" / "summary.json").write_text(json.dumps(kept))


def test_only_rules_of_the_same_seeds_are_ranked_beside_one_another(tmp_path: Path) -> None:
    others_of_two_seeds(tmp_path)
    known = board.Others.of(Options(output=tmp_path))
    both = known.among((2, 3))
    assert set(both.of_scene(FIRST)) == {"sum"}
    assert both.left_out(FIRST) == f"{FIRST}: not ranked, as not measured for every seed: Krum"
    assert set(both.of_scene("l2/iid")) == {"sum", "Krum"} and not both.left_out("l2/iid")
    assert [one.cost for one in known.among((3,)).of_scene("l2/iid")["sum"]] == [1.0]
    with pytest.raises(ConfigError, match="--seeds 7: expected of 2, 3, for which the other rules"):
        known.among((2, 7))
    assert board.Others().among((7,)).seeds == (7,)


def test_seeds_that_the_others_are_not_known_of_are_refused_before_anything_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others_of_two_seeds(tmp_path)
    typed = ["defences", "--rule", f"{HERE}:middle", "--seeds", "7", "--output", str(tmp_path)]
    assert main(typed) == 2
    told = capsys.readouterr().err
    assert told.startswith("--seeds 7: expected of 2, 3, for") and told.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["defences"]


def test_a_ranking_of_a_scene_at_the_side_has_no_number_for_what_is_not_kept() -> None:
    values = {f"s, r: {words}": [0.1] for _, words in board.SAID[:3]}
    (row,) = board.ranking({"r": board.from_metrics(values, "s, r")})
    assert row == ["1", "r", *["0.100"] * 3, *["-"] * 5]


@pytest.mark.slow
def test_the_quick_form_passes_and_fails_with_nobody_attacking(tmp_path: Path) -> None:
    summary = run_quick(STUDY, tmp_path)
    assert summary["passed"], [check for check in summary["checks"] if not check["passed"]]
    read = json.loads((tmp_path / "defences/seed-1/result.json").read_text())
    assert set(read["cells"][FIRST]["none"]) == set(QUICK_RULES)
    assert run_quick(STUDY, tmp_path, control=True)["passed"]


def _ends(values: list[float], digits: int) -> str:
    low, high = shown(min(values), digits), shown(max(values), digits)
    return low if low == high else f"{low} to {high}"


def test_the_tables_of_the_readme_are_of_the_stored_runs() -> None:
    others = board.Others.of(Options(output=Path("/nowhere")))
    lines = (Path(board.__file__).parent / "README.md").read_text().splitlines()
    scenes = [name for name, scene in SCENES.items() if scene.crossed]
    for rule in RULES:
        lost, shares = [], []
        for scene in scenes:
            ones = others.of_scene(scene)[rule]
            mean = averaged(ones)
            both = [one.lost for one in ones]
            ends = f"{shown(min(both), 3)} to {shown(max(both), 3)}"
            lost.append(f"{shown(mean.cost, 3)} + {shown(mean.harm, 3)} ({ends})")
            told, untold = ([getattr(one, f"{who}_share") for one in ones] for who in TOLD)
            shares.append(
                "div.; div." if max(told) > 10 else f"{_ends(untold, 2)}; {_ends(told, 2)}"
            )
        for cells in (lost, shares):
            assert f"| {rule} | {' | '.join(cells)} |" in lines


def test_the_table_of_the_security_page_is_of_the_stored_runs() -> None:
    others = board.Others.of(Options(output=Path("/nowhere")))
    lines = (Path(board.__file__).parents[2] / "SECURITY.md").read_text().splitlines()
    head = next(line for line in lines if line.startswith("| squared l2, `defences` (seeds 1 to 3"))
    for scene, first in ((FIRST, "users alike"), ("squared-l2/0.3", "Dirichlet(0.3)")):
        calm, least, told = [], [], []
        for rule in head.strip("| ").split(" | ")[1:]:
            reference = others.values[f"{scene}, sum: accuracy without attack"]
            ones = others.of_scene(scene)[rule]
            free = [top - one.cost for top, one in zip(reference, ones, strict=True)]
            calm.append(_ends(free, 2))
            least.append(_ends([c - one.harm for c, one in zip(free, ones, strict=True)], 2))
            shares = [one.told_share for one in ones]
            told.append("all" if max(shares) > 10 else _ends(shares, 2))
        at = next(i for i, line in enumerate(lines) if line.startswith(f"| {first}: accuracy"))
        assert lines[at].endswith(f" | {' | '.join(calm)} |")
        assert lines[at + 1] == f"| least accuracy of seventeen attacks | {' | '.join(least)} |"
        known = "those who know the rule or the honest reports"
        assert any(line.endswith(f"{known} | {' | '.join(told)} |") for line in lines)


TOLD = ("told", "untold")
