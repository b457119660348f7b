"""A Ray cluster of two raylets on this machine carries a run, also when one of them is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from experiments.running.engines import run_once
from experiments.running.options import Options
from pfl_flower.run.rounds import read_rounds
from tests.support.superlink import find_processes, free_port, private_superlink, processes_below

pytestmark = pytest.mark.slow

HEAD, OTHER = "127.0.0.1", "127.0.0.2"
ROUNDS, KILLED_AFTER = 40, 10
SETTINGS = {
    "dataset": "synthetic-logistic",
    "features": 6,
    "users": 8,
    "points-per-user": "30",
    "strategic-users": "7",
    "nu": 0.1,
    "regularizer": "l2",
    "rounds": ROUNDS,
    "evaluate-every": 0,
    "save-trajectory": True,
    "reply-timeout": 120.0,
}


def ray(*arguments: str) -> subprocess.Popen[bytes]:
    """Start Ray's part on an address of this machine; it ends with its process group."""
    program = str(Path(sys.executable).with_name("ray"))
    small = ("--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats", "--block")
    return subprocess.Popen(
        [program, "start", *arguments, *small],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def raylets(folder: Path, address: str) -> list[int]:
    """Return the raylet that is on an address, of the cluster whose files are in a folder."""
    ours = "raylet/raylet", f"--raylet_socket_name={folder}/"
    other = find_processes(*ours, f"--node_ip_address={OTHER}")
    # Ray takes the machine's own address for 127.0.0.1.
    return other if address == OTHER else sorted(set(find_processes(*ours)) - set(other))


def actors(raylet: int) -> int:
    """Return how many processes of a raylet run Flower's client app."""
    return sum("ray::ClientAppActor" in command for _, command in processes_below(raylet))


def wait_for(holds, what: str, seconds: float = 120.0) -> None:  # type: ignore[no-untyped-def]
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"in vain: {what}"
        time.sleep(0.2)


@contextmanager
def cluster() -> Iterator[tuple[int, Path]]:
    """Start two raylets of two actors each; yield the port at which they meet, and their folder."""
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    head = ("--head", f"--node-ip-address={HEAD}", f"--port={port}", "--include-dashboard=false")
    started = [ray(*head, f"--temp-dir={folder}")]
    try:
        wait_for(lambda: raylets(folder, HEAD), "the head")
        started.append(ray(f"--address={HEAD}:{port}", f"--node-ip-address={OTHER}"))
        wait_for(lambda: raylets(folder, OTHER), "the other raylet")
        yield port, folder
    finally:
        for process in started:
            below = [one for one, _ in processes_below(process.pid)]
            for sign in (signal.SIGTERM, signal.SIGKILL):
                for one in below:
                    try:
                        os.kill(one, sign)
                    except ProcessLookupError:
                        continue
                time.sleep(2)
            process.wait(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(environment: dict[str, str]) -> bool:
    flwr = str(Path(sys.executable).with_name("flwr"))
    return subprocess.run([flwr, "ls"], env=environment, capture_output=True).returncode == 0


def rounds_done(folder: Path) -> int:
    path = folder / "rounds.csv"
    return max(0, len(path.read_text().splitlines()) - 2) if path.exists() else 0


@pytest.mark.parametrize("killed", [False, True])
def test_two_raylets_carry_a_run_and_one_of_them_may_die(
    killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Options(nodes=4, settings=SETTINGS)
    config = alone.configure({}, tmp_path / "alone", 1)
    run_once(config, alone)
    expected = np.load(config.folder() / "trajectory.npy")
    spread = Options(engine="simulation", nodes=4, settings=SETTINGS)
    config = spread.configure({}, tmp_path / "cluster", 1)
    seen: dict[str, int] = {HEAD: 0, OTHER: 0}
    over = threading.Event()
    with cluster() as (port, folder):
        monkeypatch.setenv("RAY_ADDRESS", f"{HEAD}:{port}")

        def watch() -> None:
            while not over.wait(1.0):
                for address in seen:
                    for raylet in raylets(folder, address):
                        seen[address] = max(seen[address], actors(raylet))
                if killed and rounds_done(config.folder()) >= KILLED_AFTER and not over.is_set():
                    for raylet in raylets(folder, OTHER):
                        os.kill(raylet, signal.SIGKILL)

        watching = threading.Thread(target=watch)
        with private_superlink(tmp_path / "flwr") as environment:
            for key, value in environment.items():
                monkeypatch.setenv(key, value)
            # On a busy machine a SuperLink takes longer to start than Flower waits for it.
            wait_for(lambda: _answers(environment), "the SuperLink")
            watching.start()
            try:
                run_once(config, spread)
            finally:
                over.set()
                watching.join()
        assert bool(raylets(folder, OTHER)) != killed
    assert seen == {HEAD: 2, OTHER: 2}
    found = np.load(config.folder() / "trajectory.npy")
    rows = read_rounds(config.folder() / "rounds.csv")
    assert found.shape == expected.shape == (ROUNDS + 1, 6)
    assert np.abs(expected[-1] - expected[0]).max() > 0.1
    # Who met an actor that died is asked again: not a report is lost.
    assert not any(row.get("rejections") for row in rows)
    assert np.abs(found - expected).max() <= 1e-9
