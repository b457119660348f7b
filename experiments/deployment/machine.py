"""Ports and processes of this machine."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 240.0
"""Seconds that a site may take to do what is waited for; on two busy cores a round takes 20."""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Return once it holds.

    Raises
    ------
    TimeoutError
        If it does not within ``patience`` seconds.
    """
    deadline = time.monotonic() + patience
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"in vain: {what}")
        time.sleep(0.5)


def processes() -> list[tuple[int, str]]:
    """Return the id and the command line of every process on this machine."""
    listing = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 1) for line in listing.splitlines()]
    return [(int(row[0]), row[1]) for row in rows if len(row) == 2]


def answers(port: int) -> bool:
    """Return whether somebody listens on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_flowers(command: str) -> bool:
    """Return whether it is one of Flower's programs, by its name or its interpreter's argument."""
    names = [Path(word).name for word in command.split()[:2]]
    return any(name.startswith(("flower-", "flwr")) for name in names)


def send(how: Callable[[int, int], None], process: int, sign: signal.Signals) -> bool:
    """Send a signal by ``os.kill`` or ``os.killpg``; return whether anybody was there."""
    try:
        how(process, sign)
    except ProcessLookupError:
        return False
    return True
