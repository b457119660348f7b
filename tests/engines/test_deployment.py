"""A SuperLink with TLS and registered SuperNodes on loopback, by the scripts that README names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.running.engines import ROOT
from experiments.running.superlink import COMPLETED, run_status
from pfl_flower import client_app, server_app
from pfl_flower.run.config import parse_config
from pfl_flower.run.rounds import read_rounds
from pfl_flower.transport.inprocess import run_in_process
from tests.support.images import write_tree
from tests.support.superlink import free_port

Array = NDArray[np.float64]

SCRIPTS = ROOT / "experiments" / "deployment"
NODES = ("alice", "bob", "eve")
STRANGER = "mallory"
RUN = {
    "name": "site",
    "rounds": 2,
    "users": 3,
    "strategic-users": "2",
    "points-per-user": "30",
    "evaluate-every": 0,
    "save-trajectory": True,
    "site": True,
}
PATIENCE = 240.0


def make_keys(folder: Path, *names: str) -> None:
    command = [str(SCRIPTS / "make_keys.sh"), str(folder), "127.0.0.1", *names]
    subprocess.run(command, check=True, capture_output=True)


def test_keys_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    make_keys(keys, "alice")
    first = {path.name: path.read_bytes() for path in keys.iterdir()}
    make_keys(keys, "alice", "bob")
    assert {name: (keys / name).read_bytes() for name in first if name != "ca.srl"} == {
        name: content for name, content in first.items() if name != "ca.srl"
    }
    for private in ("ca.key", "server.key", "alice", "bob"):
        assert (keys / private).stat().st_mode & 0o077 == 0
    chain = ["openssl", "verify", "-CAfile", str(keys / "ca.crt"), str(keys / "server.pem")]
    subprocess.run(chain, check=True, capture_output=True)
    host = ["openssl", "x509", "-noout", "-checkip", "127.0.0.1", "-in", str(keys / "server.pem")]
    assert b"does match" in subprocess.run(host, check=True, capture_output=True).stdout


@pytest.mark.parametrize("script", ["make_keys.sh", "superlink.sh", "supernode.sh", "run.sh"])
def test_scripts_say_what_they_want(script: str) -> None:
    done = subprocess.run([str(SCRIPTS / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


class Site:
    """A deployment in a folder: what is started is stopped with it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keys, self.port = folder, folder / "keys", free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "home").mkdir()
        (folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "site"\n[superlink.site]\n'
            f'address = "127.0.0.1:{self.port}"\nroot-certificates = "{self.keys / "ca.crt"}"\n'
        )
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PFL_BIND": "127.0.0.1",
        }

    def start(self, name: str, script: str, *arguments: str, **environment: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [str(SCRIPTS / script), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.environment, **environment},
                start_new_session=True,
            )

    def start_node(self, name: str) -> None:
        role = "strategic" if name == "eve" else "honest"
        data, state = self.folder / f"data-{name}", self.folder / f"state-{name}"
        config = f'role="{role}" data-path="{data}" state-dir="{state}"'
        place = str(self.keys), name, f"127.0.0.1:{self.port}", config
        self.start(name, "supernode.sh", *place, PFL_NODE_PORT=str(free_port()))

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("flwr")), *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )

    def run(self, config: Path) -> None:
        """Start a run in the background."""
        command = [str(Path(sys.executable).with_name("flwr")), "run", str(ROOT), "site"]
        with (self.folder / "run.log").open("wb") as log:
            self.processes["run"] = subprocess.Popen(
                [*command, "--stream", "--run-config", str(config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def online(self) -> int:
        try:
            nodes = json.loads(self.flwr("supernode", "list", "site", "--format", "json").stdout)
        except ValueError:
            return 0
        return sum(node["status"] == "online" for node in nodes["nodes"])


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    made = Site(folder)
    try:
        yield made
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process in made.processes.values():
                try:
                    os.killpg(process.pid, sign)
                except ProcessLookupError:
                    continue
            time.sleep(2)
        for process in made.processes.values():
            process.wait(timeout=10)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(1)


def in_process(folder: Path) -> Array:
    config = parse_config({**RUN, "output-dir": str(folder)})
    run_in_process(
        server_app.app,
        client_app.app,
        nodes=len(NODES),
        run_config=config.flat(),
        node_configs={NODES.index("eve"): {"role": "strategic"}},
    )
    return np.load(folder / "site" / "trajectory.npy")


def test_every_node_reads_its_own_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path / "cache"))
    write_tree(tmp_path / "one" / "mine")
    write_tree(tmp_path / "other" / "mine", train=5)
    run = {**RUN, "dataset": "imagefolder:mine", "users": 2, "points-per-user": "4", "nu": 0.1}
    alone = {"strategic-users": "none", "local-solver": "sgd", "local-lr": 1e-4}

    def trajectory(name: str, second: str) -> Array:
        config = parse_config(
            {
                **run,
                **alone,
                "data-dir": str(tmp_path / "one"),
                "output-dir": str(tmp_path / name),
            }
        )
        paths = {0: {"data-path": str(tmp_path / "one")}, 1: {"data-path": str(tmp_path / second)}}
        run_in_process(
            server_app.app,
            client_app.app,
            nodes=2,
            run_config=config.flat(),
            node_configs=paths if second else None,
        )
        return np.load(tmp_path / name / "site" / "trajectory.npy")

    same, plain, own = trajectory("a", "one"), trajectory("b", ""), trajectory("c", "other")
    assert np.array_equal(same, plain)
    assert np.abs(own - plain).max() > 1e-6


@pytest.mark.slow
def test_registered_nodes_run_as_in_one_process_and_strangers_are_refused(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", *NODES, STRANGER)
    with site(tmp_path) as place:
        place.start("link", "superlink.sh", str(place.keys), str(place.port))
        wait_until(lambda: "running on https" in place.log("link"), "the SuperLink")
        for name in NODES:
            done = place.flwr("supernode", "register", str(place.keys / f"{name}.pub"), "site")
            assert "registered" in done.stdout, done.stdout + done.stderr
            place.start_node(name)
        place.start_node(STRANGER)
        wait_until(lambda: place.online() == len(NODES), "the registered nodes")
        wait_until(lambda: "Exit Code" in place.log(STRANGER), "the stranger's refusal")
        settings = {
            **RUN,
            "output-dir": str(tmp_path / "out"),
            "min-nodes": len(NODES),
            "reply-timeout": PATIENCE,
        }
        config = tmp_path / "run.toml"
        config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
        done = place.flwr("run", str(ROOT), "site", "--stream", "--run-config", str(config))
        said = done.stdout + done.stderr
        assert run_status(said, place.environment) == COMPLETED, said[-2000:]
        assert place.online() == len(NODES)
    processes = subprocess.run(["ps", "-ww", "-eo", "args="], capture_output=True, text=True)
    assert str(tmp_path) not in processes.stdout
    trajectory = np.load(tmp_path / "out" / "site" / "trajectory.npy")
    expected = in_process(tmp_path / "alone")
    assert trajectory.shape == expected.shape
    assert np.abs(trajectory - expected).max() < 1e-9
    assert np.abs(expected[-1] - expected[0]).max() > 0.1


def rows(folder: Path) -> list[dict[str, float]]:
    path = folder / "out" / "site" / "rounds.csv"
    return read_rounds(path)[1:] if path.exists() else []


@pytest.mark.slow
def test_a_killed_node_comes_back_as_the_same_user(tmp_path: Path) -> None:
    """Bob's SuperNode is killed in round 3 and started again, with the memory it wrote."""
    make_keys(tmp_path / "keys", *NODES)
    settings = {
        **RUN,
        "regularizer": "l2",
        "rounds": 7,
        "checkpoint-every": 1,
        "output-dir": str(tmp_path / "out"),
        "min-nodes": 2,
        "node-timeout": PATIENCE,
        "reply-timeout": 60.0,
    }
    config = tmp_path / "run.toml"
    config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
    with site(tmp_path) as place:
        place.start("link", "superlink.sh", str(place.keys), str(place.port))
        wait_until(lambda: "running on https" in place.log("link"), "the SuperLink")
        for name in NODES:
            place.flwr("supernode", "register", str(place.keys / f"{name}.pub"), "site")
            place.start_node(name)
        wait_until(lambda: place.online() == len(NODES), "the registered nodes")
        place.run(config)
        wait_until(lambda: len(rows(tmp_path)) >= 2, "two rounds")
        os.killpg(place.processes["bob"].pid, signal.SIGKILL)
        place.processes["bob"].wait()
        place.start_node("bob")
        wait_until(lambda: (tmp_path / "out" / "site" / "summary.json").exists(), "the end")
    measured = rows(tmp_path)
    assert [row["round"] for row in measured] == list(range(1, 8))
    users, lam = int(str(RUN["users"])), 1.0
    for row in measured:
        assert row["accepted"] + row["rejections"] == users
        assert row["step_norm"] <= row["eta"] * lam * row["accepted"] * (1 + 1e-9)
    assert measured[-1]["accepted"] == users
    assert sum(row["rejections"] for row in measured) <= 4


def test_the_script_that_runs_says_that_it_is_a_site(tmp_path: Path) -> None:
    """With a ``flwr`` that repeats its words."""
    (tmp_path / "flwr").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "flwr").chmod(0o755)
    keys = 'users=3 strategic-users="2"'
    done = subprocess.run(
        [str(SCRIPTS / "run.sh"), "site", keys, "--format", "json"],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, app, *words = done.stdout.splitlines()
    assert (first, Path(app).resolve()) == ("run", ROOT)
    assert words == ["site", "--stream", "--run-config", f"site=true {keys}", "--format", "json"]
