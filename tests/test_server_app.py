"""One run without the ServerApp around it: measured in memory, quiet, and nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfl_flower.client_app import app as client_app
from pfl_flower.run.outcome import Outcome
from pfl_flower.run.problem import build_problem
from pfl_flower.run.rounds import ROUNDS_FILE, read_rounds
from pfl_flower.server_app import run
from pfl_flower.support.errors import ConfigError
from pfl_flower.transport.inprocess import InProcessGrid
from strategies import recruiting
from tests.support.runs import configure

TIMES = "seconds", "seconds_total"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recruiting, "SETTLE_SECONDS", 0.0)


def outcome(folder: Path | None = None, lines: list[str] | None = None, **changes: Any) -> Outcome:
    config = configure(**changes)
    grid = InProcessGrid(client_app, nodes=2, run_config=config.flat())
    told = {} if lines is None else {"say": lines.append}
    return run(grid, build_problem(config), folder=folder, **told)


def untimed(found: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in found.items() if key not in TIMES}


@pytest.mark.parametrize("changes", [{}, {"save_trajectory": True, "equilibrium": True}])
def test_in_memory_it_measures_what_the_files_say(changes: dict[str, Any], tmp_path: Path) -> None:
    changes = {**changes, "output_dir": str(tmp_path / "unasked")}
    alone, kept = outcome(**changes), outcome(tmp_path / "kept", **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    rows = read_rounds(tmp_path / "kept" / ROUNDS_FILE)
    assert kept.course.rows == rows
    assert [untimed(row) for row in alone.course.rows] == [untimed(row) for row in rows]
    assert len(rows) == 7
    assert untimed(alone.metrics) == untimed(kept.metrics)
    assert ("equilibrium_gap" in alone.metrics) == ("equilibrium" in changes)
    with np.load(tmp_path / "kept" / "limit.npz") as limit:
        assert np.array_equal(alone.course.rho.numpy(), limit["rho"])
        assert np.array_equal(alone.course.gradient.numpy(), limit["gradient"])
    if "save_trajectory" in changes:
        saved = np.load(tmp_path / "kept" / "trajectory.npy")
        assert np.array_equal(alone.course.trajectory, saved)  # type: ignore[arg-type]
        assert torch.equal(alone.course.trajectory[-1], alone.course.rho)  # type: ignore[index]
    else:
        assert alone.course.trajectory is None


def test_it_says_what_it_found_to_whom_it_is_told_to_and_to_nobody_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []
    outcome(tmp_path, lines)
    assert "accuracy on true labels" in lines[1]
    assert [Path(line.strip()).name for line in lines[2:]] == [
        "rounds.csv",
        "summary.json",
        "run.png",
        "run.pdf",
    ]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("changes", "passed"), [({}, True), ({"solver_iterations": 1}, False)])
def test_an_outcome_that_cannot_be_relied_on_has_not_passed(
    changes: dict[str, Any], passed: bool
) -> None:
    found = outcome(**changes)
    assert found.passed == found.summary()["passed"] == passed


def test_a_checkpoint_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match="checkpoint-every = 3: expected 0"):
        outcome(checkpoint_every=3)
