"""Two hundred rounds of ``flwr run`` on Ray with a client that crashes, dawdles, and dies."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from experiments.running.engines import run_once
from experiments.running.options import Options
from tests.support.crashing import EXIT, PERIOD, SLOW
from tests.support.superlink import private_superlink

pytestmark = pytest.mark.slow

ROUNDS = 200
SETTINGS = {
    "dataset": "synthetic-logistic",
    "features": 6,
    "users": 4,
    "points-per-user": "30",
    "strategic-users": "3",
    "nu": 0.1,
    "regularizer": "l2",
    "evaluate-every": 0,
    "save-trajectory": True,
    "attack": "tests.support.crashing:crashing",
    "reply-timeout": 20.0,
}


def test_a_client_that_crashes_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is late, rho is that of the same crashes in one process; then the run still ends."""
    until = Options(nodes=2, settings=SETTINGS, rounds=SLOW - 1)
    config = until.configure({}, tmp_path / "inprocess", 1)
    run_once(config, until)
    calm = np.load(config.folder() / "trajectory.npy")
    options = Options(engine="simulation", nodes=2, settings=SETTINGS, rounds=ROUNDS)
    config = options.configure({}, tmp_path / "simulation", 1)
    with private_superlink(tmp_path / "flwr") as environment:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        run_once(config, options)
    rough = np.load(config.folder() / "trajectory.npy")
    assert rough.shape == (ROUNDS + 1, 6)
    assert np.isfinite(rough).all()
    assert np.abs(rough[:SLOW] - calm).max() <= 1e-9
    with (config.folder() / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    reasons = {int(row["round"]): row["rejection_reasons"] for row in rows}
    assert list(reasons) == list(range(ROUNDS + 1))
    for round in range(1, SLOW):
        assert reasons[round] == ("" if round % PERIOD else "client-error:1")
    assert reasons[SLOW] == "no-reply:1"
    assert all("client-error" in reasons[round] for round in range(EXIT, ROUNDS + 1))
    bound = float(rows[-1]["eta"]) * 4 * 1.0
    steps = np.linalg.norm(np.diff(rough, axis=0), axis=1)
    assert steps[-1] <= bound * (1 + 1e-9)
