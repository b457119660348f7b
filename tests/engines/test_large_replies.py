"""What the largest reply costs the server, through a real SuperLink without a proxy before it.

``python -m tests.engines.test_large_replies 400`` prints the memory of each process.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments.running.engines import ROOT
from experiments.running.superlink import COMPLETED, run_status
from tests.support.boasting import HOW_MUCH
from tests.support.superlink import free_port, processes_below

RUN = {
    "name": "large",
    "rounds": 1,
    "users": 2,
    "strategic-users": "1",
    "points-per-user": "30",
    "evaluate-every": 0,
    "min-nodes": 2,
    "site": True,
    "regularizer": "l2",
    "attack": "tests.support.boasting:boasting",
}
PATIENCE = 300.0
REPLY_TIMEOUT = 150.0
"""Of a node whose upload is cut off: it may not answer again at all."""
SERVER_APP, LINK = "flwr-serverapp", "flower-superlink"


def peaks_of(root: int, found: dict[str, int]) -> None:
    """Note the largest resident memory, in MB, of a process and of those that it has started."""
    for process, command in processes_below(root):
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            continue
        lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if "VmHWM" in lines:
            name = next((one for one in (SERVER_APP, LINK) if one in command), "others")
            peak = int(lines["VmHWM"].split()[0]) // 1000
            found[name] = max(found.get(name, 0), peak)


@contextmanager
def watched(root: int) -> Iterator[dict[str, int]]:
    found: dict[str, int] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            peaks_of(root, found)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield found
    finally:
        over.set()
        watching.join()


@contextmanager
def site(folder: Path, megabytes: int) -> Iterator[tuple[dict[str, str], int]]:
    """Start a SuperLink on loopback and two SuperNodes, of which one boasts."""
    port, programs = free_port(), Path(sys.executable).parent
    (folder / "home").mkdir()
    (folder / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "site"\n[superlink.site]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: str, **more: str) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [str(programs / command[0]), *command[1:]],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**environment, **more},
                    start_new_session=True,
                )
            )

    link = ("--insecure", "--host", "127.0.0.1", "--port", str(port))
    database = ("--database", str(folder / "link.db"))
    node = ("--insecure", "--superlink", f"127.0.0.1:{port}", "--isolation", "subprocess")
    try:
        start("link", LINK, *link, *database, "--disable-runtime-dependency-installation")
        time.sleep(8)
        for role, more in (("honest", {}), ("strategic", {HOW_MUCH: str(megabytes)})):
            own = ("--port", str(free_port()), "--node-config", f'role="{role}"')
            start(role, "flower-supernode", *node, *own, **more)
        yield environment, started[0].pid
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process in started:
                try:
                    os.killpg(process.pid, sign)
                except ProcessLookupError:
                    continue
            time.sleep(2)
        for process in started:
            process.wait(timeout=10)


def measure(folder: Path, megabytes: int) -> tuple[dict[str, int], dict[str, str]]:
    """Return the peaks of the server's processes, and the row of the round."""
    keys = {**RUN, "output-dir": str(folder / "out"), "reply-timeout": REPLY_TIMEOUT}
    config = folder / "run.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
    with site(folder, megabytes) as (environment, link), watched(link) as peaks:
        flwr = str(Path(sys.executable).with_name("flwr"))
        done = subprocess.run(
            [flwr, "run", str(ROOT), "site", "--run-config", str(config)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        said, until = done.stdout + done.stderr, time.monotonic() + 2 * PATIENCE
        while not (status := _status(said, environment)).startswith("finished"):
            assert time.monotonic() < until, (status, peaks, said[-1000:])
            time.sleep(2)
        assert status == COMPLETED, (status, peaks, (folder / "link.log").read_text()[-2000:])
    with (folder / "out" / "large" / "rounds.csv").open(newline="") as file:
        return peaks, list(csv.DictReader(file))[-1]


def _status(said: str, environment: dict[str, str]) -> str:
    try:
        return run_status(said, environment)
    except subprocess.TimeoutExpired:  # a SuperLink that is busy
        return "unknown"


@pytest.mark.slow
def test_a_reply_of_400_megabytes_costs_the_server_app_next_to_nothing(tmp_path: Path) -> None:
    """Its memory with such a reply is that without, but for what may be on its way at once.

    Half of the reply, at most: it was never held whole. What the processes take besides differs by
    tens of megabytes from run to run. (Before, the reply cost 650 MB.)

    The SuperLink, which is Flower's, has taken as much of the upload as came before the server app
    looked, once in three seconds: mostly 150 MB, and 320 where other tests had the processors. It
    never holds more than the reply. (Before, it held 940 MB for it.)
    """
    (tmp_path / "calm").mkdir()
    (tmp_path / "boast").mkdir()
    calm, _ = measure(tmp_path / "calm", 0)
    peaks, row = measure(tmp_path / "boast", 400)
    assert row["rejection_reasons"] in ("too-large:1", "client-error:1", "no-reply:1")
    assert row["accepted"] == "1"
    assert row["notices"].startswith("error-reply:")
    assert peaks[SERVER_APP] <= calm[SERVER_APP] + 200
    assert peaks[LINK] <= calm[LINK] + 400


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        print(*measure(Path(made), int(sys.argv[1])))
