"""A tracker is told what ``rounds.csv`` says; what it raises is counted, and moves nothing."""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import pfl_flower as pfl
from experiments.__main__ import main
from pfl_flower.run.config import parse_config
from pfl_flower.run.preset_claims import claimed
from pfl_flower.run.presets import preset
from pfl_flower.run.tracking import harness
from pfl_flower.run.tracking.harness import TRACKED, Tracking
from pfl_flower.run.tracking.tensorboard import TensorBoard
from pfl_flower.run.tracking.tracker import TrackedRun
from pfl_flower.support.errors import ConfigError
from tests.support.runs import TINY

ROOT = Path(__file__).parents[2]
KEYS: dict[str, Any] = {key.replace("-", "_"): value for key, value in TINY.items()}
SERVED: dict[str, Any] = {
    "dataset": "digits",
    "partition": "dirichlet",
    "points_per_user": 30,
    "rounds": 2,
    "evaluate_every": 1,
    "nu": 0.1,
}
"""Users with test sets of their own: more columns."""


class Spy:
    """Keeps what it is told; raises where it is told to, and at its end with a negative round."""

    made: list[Spy]

    def __init__(self, run: TrackedRun, *, at: str = "") -> None:
        self.run, self.rows, self.closed = run, {}, 0
        self.at = [] if run.trial else [int(entry) for entry in at.split(",") if entry]
        Spy.made.append(self)

    def row(self, round: int, numbers: dict[str, float]) -> None:
        assert not self.closed
        self.rows[round] = dict(numbers)
        numbers["norm_rho"] = float("nan")
        if round in self.at:
            raise LookupError(f"lost\nround {round}")

    def close(self) -> None:
        self.closed += 1
        if -1 in self.at:
            raise SystemExit("no end")


@pytest.fixture(autouse=True)
def spies() -> list[Spy]:
    Spy.made = []
    return Spy.made


def scalars(folder: Path) -> dict[tuple[int, str], float]:
    """What TensorBoard itself reads: its other accumulator keeps tensors that a restart voids."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder / "tensorboard"), tensor_size_guidance={"scalars": 0})
    events.Reload()
    return {
        (event.step, tag): float(make_ndarray(event.tensor_proto))
        for tag in events.Tags()["tensors"]
        for event in events.Tensors(tag)
    }


def written(result: pfl.Result) -> dict[tuple[int, str], float]:
    """What ``rounds.csv`` says in numbers, but for the seed."""
    return {
        (int(row["round"]), name): float(value)
        for row in result.rounds.rows()
        for name, value in row.items()
        if name not in ("seed", "round") and not isinstance(value, str)
    }


@pytest.mark.parametrize("keys", [KEYS, SERVED], ids=["tiny", "users with test sets"])
def test_tensorboard_has_the_numbers_of_rounds_csv(keys: dict[str, Any], tmp_path: Path) -> None:
    result = pfl.run(output=tmp_path, tracker="tensorboard", **keys)
    assert result.passed
    expected = written(result)
    assert len(expected) > 3 * 10
    assert scalars(tmp_path) == expected


def test_a_run_from_the_start_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    for rounds in (6, 3):
        keys = {**KEYS, "rounds": rounds, "tracker": "tensorboard"}
        result = pfl.run(output=tmp_path, fresh=True, **keys)
    assert scalars(tmp_path) == written(result)
    assert max(step for step, _ in scalars(tmp_path)) == 3


def test_a_resumed_run_tells_of_the_rounds_after_its_checkpoint(
    tmp_path: Path, spies: list[Spy]
) -> None:
    keys = {**KEYS, "output": tmp_path, "checkpoint_every": 2}
    pfl.run(**{**keys, "rounds": 4, "tracker": "tensorboard"})
    # TensorBoard orders files by the second, the process and a count, 10 before 9: a process that
    # goes on with a run is another one, later.
    time.sleep(1.1)
    # A process that went on after its last checkpoint, and was killed.
    tracker = TensorBoard(TrackedRun(name="", seed=1, settings={}, folder=tmp_path, first=5))
    for round in (5, 6):
        tracker.row(round, {"norm_rho": -1.0})
    tracker.close()
    time.sleep(1.1)
    result = pfl.run(**{**keys, "rounds": 5, "resume": "auto", "tracker": "tensorboard"})
    assert scalars(tmp_path) == written(result)
    pfl.run(**{**keys, "rounds": 6, "resume": "auto", "tracker": Spy})
    assert (spies[-1].run.first, list(spies[-1].rows)) == (6, [6])


def test_a_tracker_is_tried_first_and_told_everything(tmp_path: Path, spies: list[Spy]) -> None:
    result = pfl.run(output=tmp_path, tracker=Spy, **KEYS)
    trial, real = spies
    assert (trial.run.trial, real.run.trial) == (True, False)
    assert trial.closed == real.closed == 1
    assert trial.run.folder is not None
    assert not trial.run.folder.exists()
    assert (real.run.folder, real.run.first, real.run.seed) == (tmp_path, 0, 1)
    assert real.run.settings == result.config
    assert list(real.rows) == list(range(7))
    assert {(r, n): v for r, row in real.rows.items() for n, v in row.items()} == written(result)
    (check,) = [check for check in result.checks if check.name == TRACKED]
    assert (check.value, check.passed) == ("all", True)


RAISES = {
    "one round": ("2", "1 missed, the last with {here}: LookupError: lost round 2"),
    "several": ("0,3,4", "3 missed, the last with {here}: LookupError: lost round 4"),
    "the end": ("-1", "its end failed with {here}: SystemExit: no end"),
    "both": (
        "2,-1",
        "1 missed, the last with {here}: LookupError: lost round 2; "
        "its end failed with {here}: SystemExit: no end",
    ),
}


@pytest.mark.parametrize("name", RAISES)
def test_what_a_tracker_raises_fails_the_run_and_moves_nothing(
    name: str, tmp_path: Path, spies: list[Spy]
) -> None:
    at, said = RAISES[name]
    plain = pfl.run(**KEYS)
    result = pfl.run(output=tmp_path, tracker=Spy, tracker_options={"at": at}, **KEYS)
    assert result.rho.tolist() == plain.rho.tolist()
    assert result.rounds["norm_rho"].tolist() == plain.rounds["norm_rho"].tolist()
    assert list(spies[-1].rows) == list(range(7))
    failed = [check for check in result.checks if not check.passed]
    assert [check.name for check in failed] == [TRACKED]
    value = re.sub(r"\S*test_tracking.py:\d+", "{here}", str(failed[0].value))
    assert value == said
    assert pfl.load(tmp_path).verdict == result.verdict
    rounds = [int(entry) for entry in at.split(",") if int(entry) >= 0]
    left = [one.count for one in result.left_out if "tracker" in one.what]
    assert left == ([len(rounds)] if rounds else [])
    assert f"tracker = {result.config['tracker']}: " in result.log


def test_what_was_missed_before_a_checkpoint_is_not_forgotten(tmp_path: Path) -> None:
    keys = {**KEYS, "output": tmp_path, "checkpoint_every": 3, "tracker": Spy}
    pfl.run(**{**keys, "rounds": 3, "tracker_options": {"at": "1"}})
    result = pfl.run(**{**keys, "resume": "auto"})
    (failed,) = [check for check in result.checks if not check.passed]
    assert (failed.name, failed.value) == (TRACKED, "1 missed")


def test_the_command_line_fails_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "half.py").write_text(
        "class Half:\n"
        "    def __init__(self, run): self.trial = run.trial\n"
        "    def row(self, round, numbers):\n"
        "        if round % 2 and not self.trial: raise OSError('disk')\n"
        "    def close(self): pass\n"
    )
    words = ["run", "digits-l2", "--output", str(tmp_path), "--set", "tracker=half:Half"]
    assert main([*words, "rounds=3", "points-per-user=30", "evaluate-every=0"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"FAILED seed-1 the tracker took every round = 2 missed, the last with ", said)
    # A long path is wrapped where the terminal ends.
    assert "half.py:4:OSError:disk" in said.replace(" ", "")
    assert "rounds that the tracker did not take: 2 (rounds 1 to 3)" in said


class NoRow:
    def __init__(self, run: TrackedRun) -> None: ...
    def close(self) -> None: ...


class RaisesAtOnce(NoRow):
    def __init__(self, run: TrackedRun) -> None:
        raise ValueError("no key")


class RaisesRow(NoRow):
    def row(self, round: int, numbers: dict[str, float]) -> None:
        raise SystemExit(numbers)


REFUSED: list[tuple[Any, str]] = [
    ("nobody", "tracker = nobody: expected none, tensorboard, or a class as package.module:Name"),
    ("not_there:Tracker", "tracker = not_there:Tracker: expected something importable"),
    (NoRow, "expected a tracker with row and close, and it has no row"),
    (RaisesAtOnce, "expected a factory that works ("),
    (RaisesRow, "expected a tracker that works ("),
    ("tensorboard", "tracker = tensorboard: expected a run that writes its results: output=..."),
]


@pytest.mark.parametrize(("tracker", "said"), REFUSED, ids=lambda value: str(value)[:30])
def test_a_wrong_tracker_is_one_line_before_round_1(tracker: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pfl.run(tracker=tracker, **KEYS)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_package_it_is_one_line_before_flower_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    words = ["run", "digits-l2", "--set", "tracker=tensorboard", "--output", str(tmp_path)]
    assert main([*words, "--engine", "simulation"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "tracker = tensorboard: expected pip install 'pfl-flower[tensorboard]' ("
    )
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.rglob("rounds.csv"))


def test_every_cell_of_a_sweep_is_tracked_in_its_folder(tmp_path: Path) -> None:
    keys = {**KEYS, "tracker": "tensorboard", "rounds": 2}
    grid = pfl.sweep(None, {"lam": [0.5, 1.0]}, output=tmp_path, progress=False, **keys)
    assert grid.passed
    for lam in ("0.5", "1"):
        assert max(step for step, _ in scalars(tmp_path / f"lam={lam}" / "seed-1")) == 2


def test_a_preset_that_is_tracked_keeps_its_claims() -> None:
    settings = {**preset("digits-l2"), "tracker": "tensorboard"}
    assert claimed(parse_config(settings)) == "those of the preset digits-l2"


def test_nothing_is_told_after_the_end(spies: list[Spy]) -> None:
    config = parse_config({"tracker": f"{__name__}:Spy"})
    tracking = Tracking.of(config, None)
    assert tracking.row(0, {"norm_rho": 1.0, "notices": "x:1", "rejections": None}) == ""
    assert tracking.close() == tracking.close() == ""
    assert tracking.row(1, {"norm_rho": 1.0}) == ""
    assert (spies[-1].rows, spies[-1].closed) == ({0: {"norm_rho": 1.0}}, 1)
    assert harness.NONE == "none"


def wandb_block() -> str:
    text = (ROOT / "pfl_flower/run/README.md").read_text()
    (code,) = re.findall(r"```python my_wandb\n(.*?)```", text, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 10
    return code


def test_readmes_weights_and_biases_calls_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stand-in that keeps the calls: the package itself is not among the tests' needs."""
    (tmp_path / "my_wandb.py").write_text(wandb_block())
    monkeypatch.syspath_prepend(str(tmp_path))
    runs: list[SimpleNamespace] = []

    def init(**settings: Any) -> SimpleNamespace:
        one = SimpleNamespace(settings=settings, rows={}, ended=[])
        one.log = lambda numbers, step: one.rows.update({step: numbers})
        one.finish = lambda: one.ended.append(True)
        runs.append(one)
        return one

    fake = ModuleType("wandb")
    monkeypatch.setattr(fake, "init", init, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    result = pfl.run(output=tmp_path / "run", tracker="my_wandb:Offline", **KEYS)
    sys.modules.pop("my_wandb")
    assert result.passed
    assert [one.settings["mode"] for one in runs] == ["disabled", "offline"]
    assert runs[1].settings["config"] == result.config
    assert runs[1].settings["dir"] == tmp_path / "run"
    assert {(r, n): v for r, row in runs[1].rows.items() for n, v in row.items()} == written(result)
    assert runs[1].ended == [True]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_readmes_weights_and_biases_keeps_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_wandb.py").write_text(wandb_block())
    monkeypatch.syspath_prepend(str(tmp_path))
    result = pfl.run(output=tmp_path / "run", tracker="my_wandb:Offline", **KEYS)
    sys.modules.pop("my_wandb")
    assert result.passed
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert kept.stat().st_size > 1000
