"""A private local SuperLink for tests: its own home, its own ports, and stopped by process id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.deployment.machine import free_port
from experiments.running.superlink import flower_environment


@contextmanager
def private_superlink(home: Path) -> Iterator[dict[str, str]]:
    """Yield an environment in which ``flwr`` starts a SuperLink of its own; stop it afterwards."""
    environment = {
        **flower_environment(),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
    }
    try:
        yield environment
    finally:
        stop_processes(str(home))
        port = int(environment["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"])
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"still listening on {port}"


def stop_processes(marker: str) -> None:
    """End the SuperLink whose command line names ``marker``, and all of its descendants."""
    rows = _processes()
    chosen = {pid for pid, _, command in rows if _is_superlink(command, marker)}
    chosen |= _below(chosen, rows)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in chosen:
            try:
                os.kill(process, sign)
            except ProcessLookupError:
                continue
        time.sleep(1)


def find_processes(*words: str) -> list[int]:
    """Return the ids of the processes whose command line has all of these words in it."""
    return [pid for pid, _, command in _processes() if all(word in command for word in words)]


def processes_below(root: int) -> list[tuple[int, str]]:
    """Return a process and those that it has started, and these in turn: ids and command lines."""
    rows = _processes()
    chosen = {root} | _below({root}, rows)
    return [(pid, command) for pid, _, command in rows if pid in chosen]


def _processes() -> list[tuple[int, int, str]]:
    listing = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()]
    return [(int(row[0]), int(row[1]), row[2]) for row in rows if len(row) == 3]


def _below(roots: set[int], rows: list[tuple[int, int, str]]) -> set[int]:
    found: set[int] = set()
    grew = True
    while grew:
        children = {pid for pid, parent, _ in rows if parent in roots | found}
        grew = not children <= found
        found |= children
    return found


def _is_superlink(command: str, marker: str) -> bool:
    return "flower-superlink" in command and marker in command
