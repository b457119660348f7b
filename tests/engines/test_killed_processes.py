"""Real processes under SIGKILL: the command line in one process, and ``flwr run`` on Ray."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.running.engines import ROOT, run_once, simulation_command
from experiments.running.options import Options
from experiments.running.preset_runs import preset_folder
from experiments.running.superlink import COMPLETED, run_status
from pfl_flower.run.config import RunConfig
from pfl_flower.run.presets import preset
from pfl_flower.run.rounds import read_rounds
from strategies.checkpoint import CHECKPOINT_FILE
from tests.support.killing import last_round
from tests.support.superlink import find_processes, private_superlink

pytestmark = pytest.mark.slow

EVERY = 4
SETTINGS = {
    "dataset": "synthetic-logistic",
    "features": 6,
    "users": 5,
    "points-per-user": "40",
    "strategic-users": "4",
    "nu": 0.1,
    "evaluate-every": 0,
    "save-trajectory": True,
}


def uninterrupted(folder: Path, rounds: int) -> np.ndarray:
    options = Options(nodes=2, settings=SETTINGS, rounds=rounds)
    config = options.configure({}, folder, 1)
    run_once(config, options)
    found: np.ndarray = np.load(config.folder() / "trajectory.npy")
    return found


def killed_in(
    start: Callable[[], subprocess.Popen[bytes]], folder: Path, after: int, *words: str
) -> int:
    """Start a run, kill its server once ``after`` more rounds are done; return the last round.

    The server's command line has ``words`` in it. What was started and waits for it is ended too.
    """
    goal = last_round(folder) + after
    run = start()
    while last_round(folder) < goal:
        assert run.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    servers = find_processes(*words)
    assert len(servers) == 1
    os.kill(servers[0], signal.SIGKILL)
    if run.pid != servers[0]:
        run.kill()
    run.wait(timeout=30)
    return last_round(folder)


def ended_the_same(config: RunConfig, whole: np.ndarray) -> None:
    resumed = np.load(config.folder() / "trajectory.npy")
    assert resumed.shape == whole.shape
    assert np.abs(resumed - whole).max() <= 1e-9
    rows = read_rounds(config.folder() / "rounds.csv")
    assert [row["round"] for row in rows] == list(range(len(whole)))


def checkpointed(folder: Path) -> int:
    """Return the last round that a checkpoint says it holds."""
    from pfl_flower.support.files import read_sealed

    return int(read_sealed(folder / CHECKPOINT_FILE, "checkpoint").facts["round"])


def test_the_command_line_is_killed_at_random_rounds(tmp_path: Path) -> None:
    rounds = 120
    whole = uninterrupted(tmp_path / "whole", rounds)
    settings = {**SETTINGS, "checkpoint-every": EVERY, "resume": "auto"}
    command = [sys.executable, "-m", "experiments", "run", "digits-squared-l2", "--nodes", "2"]
    command += ["--output", str(tmp_path / "cut"), "--rounds", str(rounds), "--set"]
    command += [f"{key}={str(value).lower()}" for key, value in settings.items()]
    options = Options(nodes=2, settings=settings, rounds=rounds)
    options = replace(options, output=tmp_path / "cut")
    name = "digits-squared-l2"
    config = options.configure(preset(name), preset_folder(name, options), 1)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    draw = random.Random(6)
    for _ in range(2):
        done = killed_in(
            start, config.folder(), draw.randint(5, 45), "experiments run", str(tmp_path)
        )
        assert EVERY < done < rounds
        assert done - checkpointed(config.folder()) <= EVERY
    # The claims of the preset are about digits: only the run is judged here.
    assert start().wait(timeout=120) in (0, 1)
    ended_the_same(config, whole)


def test_flwr_run_is_killed_at_a_random_round(tmp_path: Path) -> None:
    """The process of the ServerApp dies; ``flwr run`` again, with ``resume = auto``, goes on."""
    rounds = 15
    whole = uninterrupted(tmp_path / "whole", rounds)
    settings = {**SETTINGS, "checkpoint-every": EVERY, "resume": "auto"}
    options = Options(engine="simulation", nodes=2, settings=settings, rounds=rounds)
    config = options.configure({}, tmp_path / "cut", 1)
    config.folder().mkdir(parents=True)
    command = simulation_command(config, 2, config.folder())
    with private_superlink(tmp_path / "flwr") as environment:

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

        draw, port = random.Random(2), environment["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"]
        after = draw.randint(5, 9)
        done = killed_in(start, config.folder(), after, "flwr-simulation", f":{port}")
        assert EVERY < done < rounds
        assert done - checkpointed(config.folder()) <= EVERY
        last = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run_status(last.stdout, environment) == COMPLETED
    ended_the_same(config, whole)
