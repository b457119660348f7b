"""A whole site on one machine, by the scripts of this folder: for tests and for the rehearsal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from experiments.deployment.machine import (
    PATIENCE,
    answers,
    free_port,
    is_flowers,
    processes,
    send,
    wait_until,
)
from experiments.running.engines import ROOT
from experiments.running.superlink import flower_environment, script
from pfl_flower.support.files import replace_file

SCRIPTS = ROOT / "experiments" / "deployment"
LAST_LINES = 30
"""Of each program's log, where something is waited for in vain."""


class Site:
    """The certificate authority, the server and the participants of a site, each in a folder.

    Parameters
    ----------
    folder : Path
        Where keys, states, logs and results go.

    Notes
    -----
    Use it by ``site``, which stops what was started.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tls, self.state, self.authority = folder / "tls", folder / "link", folder / "ca"
        self.link_port, self.port = free_port(), free_port()
        self.node_ports: dict[str, int] = {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **flower_environment(),
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            # A node compiles an app once, for its first message, as Python does unless told not to.
            "PYTHONDONTWRITEBYTECODE": "",
            "PFL_BIND": "127.0.0.1",
            "PFL_PAUSE": "2",
            "PFL_AS_ROOT": "1",
        }
        (folder / "home").mkdir(parents=True)
        replace_file(
            folder / "home" / "config.toml",
            f'[superlink]\ndefault = "site"\n[superlink.site]\n'
            f'address = "127.0.0.1:{self.link_port}"\n'
            f'root-certificates = "{self.state / "loopback.crt"}"\n',
        )
        self._make_server_keys()

    @property
    def address(self) -> str:
        """What nodes are told."""
        return f"127.0.0.1:{self.port}"

    def keys(self, node: str) -> Path:
        """Return the folder of a participant's key and of the certificate authority's word."""
        folder = self.folder / "nodes" / node
        if not folder.exists():
            self.call("make_keys.sh", "node", str(folder), node)
            (folder / "ca.crt").symlink_to(self.authority / "ca.crt")
        return folder

    def call(self, name: str, *arguments: str) -> str:
        """Run a script to its end and return what it prints."""
        command = [str(SCRIPTS / name), *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, env=self.environment
        ).stdout

    def start(self, name: str, *command: str, **environment: str) -> None:
        """Start a program in the background, in a process group of its own, with a log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.environment, **environment},
                start_new_session=True,
            )

    def start_server(self) -> None:
        """Start the SuperLink and the proxy, and wait until both answer."""
        self.start_link()
        arguments = str(self.tls), str(self.state / "loopback.crt")
        ports = str(self.port), str(self.link_port)
        self.start("proxy", str(SCRIPTS / "proxy.sh"), *arguments, *ports)
        self.wait(lambda: answers(self.port) or self.ended("proxy"), "the proxy")
        if self.ended("proxy"):
            raise RuntimeError(self.log("proxy").strip())

    def start_link(self) -> None:
        """Start the SuperLink, on the state that it has."""
        self.start("link", str(SCRIPTS / "superlink.sh"), str(self.state), str(self.link_port))
        self.wait(lambda: answers(self.link_port), "the SuperLink")

    def register(self, *nodes: str) -> None:
        """Register participants' keys."""
        for node in nodes:
            done = self.flwr("supernode", "register", str(self.keys(node) / f"{node}.pub"), "site")
            if "registered" not in done.stdout:
                raise RuntimeError(done.stdout + done.stderr)

    def start_node(
        self, node: str, role: str = "honest", name: str = "", **environment: str
    ) -> None:
        """Start a participant's SuperNode; with a ``name``, another machine with its key."""
        name = name or node
        data, state = self.folder / f"data-{name}", self.folder / f"state-{name}"
        config = f'role="{role}" data-path="{data}" state-dir="{state}"'
        arguments = str(self.keys(node)), node, self.address, config
        port = self.node_ports[name] = free_port()
        given = {"PFL_NODE_PORT": str(port), **environment}
        self.start(name, str(SCRIPTS / "supernode.sh"), *arguments, **given)

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Ask the SuperLink, as its operator."""
        return subprocess.run(
            [script("flwr"), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, settings: Mapping[str, object]) -> None:
        """Start a run in the background; its log is that of ``run``."""
        keys = " ".join(f"{key}={_toml(value)}" for key, value in settings.items())
        self.start("run", str(SCRIPTS / "run.sh"), "site", keys)

    def log(self, name: str) -> str:
        """Return what a program has printed so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait(
        self,
        holds: Callable[[], bool],
        what: str,
        patience: float = PATIENCE,
        during: str = "",
    ) -> None:
        """Return once it holds.

        Parameters
        ----------
        holds : callable
            What is asked twice a second.
        what : str
            Its name.
        patience : float
            Seconds.
        during : str
            A program that was started: once it has ended nothing is waited for any more.

        Raises
        ------
        TimeoutError
            If it does not hold in time, or not before that program ended. The last lines of every
            program's log are its note.
        """
        over = False

        def settled() -> bool:
            nonlocal over
            # In this order: what has come about before the program's end is seen.
            over = bool(during) and self.ended(during)
            return holds() or over

        try:
            wait_until(settled, what, patience)
            if over and not holds():
                raise TimeoutError(f"in vain: {what}; {during} has ended")
        except TimeoutError as error:
            error.add_note(self.last_lines())
            raise

    def last_lines(self) -> str:
        """Return the last lines of every program's log."""
        return "\n".join(
            f"{name}: {line}"
            for name in self.running
            for line in self.log(name).splitlines()[-LAST_LINES:]
        )

    def ended(self, name: str) -> bool:
        """Return whether a program that was started is no longer there."""
        return self.running[name].poll() is not None

    def online(self) -> int:
        """Return how many nodes the SuperLink believes to be there."""
        try:
            nodes = json.loads(self.flwr("supernode", "list", "site", "--format", "json").stdout)
            return sum(node["status"] == "online" for node in nodes["nodes"])
        except (ValueError, KeyError):
            return 0

    def members(self, *words: str) -> list[int]:
        """Return Flower's processes at this site whose command line has these words."""
        ports = [self.link_port, self.port, *self.node_ports.values()]
        marks = [str(self.folder), *(f"127.0.0.1:{port}" for port in ports)]
        return [
            process
            for process, command in processes()
            if is_flowers(command)
            and any(mark in command for mark in marks)
            and all(word in command for word in words)
        ]

    def kill(self, *words: str) -> list[int]:
        """Kill, without a word, the site's processes with these words; return their ids."""
        return [process for process in self.members(*words) if self.kill_one(process)]

    def kill_one(self, process: int) -> bool:
        """Kill a process, and return whether it was still there."""
        return send(os.kill, process, signal.SIGKILL)

    def stop(self, name: str, sign: signal.Signals = signal.SIGTERM) -> None:
        """End a program that was started, and its process group."""
        send(os.killpg, self.running[name].pid, sign)
        self.running[name].wait(timeout=30)

    def close(self) -> None:
        """Stop everything that was started, by its id."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process in self.running.values():
                send(os.killpg, process.pid, sign)
            time.sleep(2)
        for process in self.running.values():
            process.wait(timeout=10)
        # Flower gives some of its processes a group of their own.
        self.kill()

    def _make_server_keys(self) -> None:
        self.call("make_keys.sh", "ca", str(self.authority))
        self.call("make_keys.sh", "server", str(self.tls), "127.0.0.1")
        signed = self.call(
            "make_keys.sh", "sign", str(self.authority), str(self.tls / "server.csr")
        )
        replace_file(self.tls / "server.pem", signed)
        replace_file(self.tls / "ca.crt", (self.authority / "ca.crt").read_text())


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """Yield a site in a folder; what is started in it is stopped with it."""
    made = Site(folder)
    try:
        yield made
    finally:
        made.close()


def _toml(value: object) -> str:
    return f"'{value}'" if isinstance(value, (str, Path)) else json.dumps(value)
