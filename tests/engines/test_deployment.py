"""The scripts of a site, each alone, and what its nodes read; the whole site is in test_site."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.deployment import clock
from experiments.deployment.loopback import SCRIPTS, Site
from experiments.deployment.machine import wait_until
from experiments.running.engines import ROOT
from pfl_flower import client_app, server_app
from pfl_flower.run.config import parse_config
from pfl_flower.transport.inprocess import run_in_process
from tests.support.images import write_tree
from tests.support.recorder import loopback_certificate

Array = NDArray[np.float64]

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


def call(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPTS / name), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def openssl(*words: str) -> str:
    return subprocess.run(["openssl", *words], check=True, capture_output=True, text=True).stdout


def test_each_key_is_made_once_where_it_stays_and_for_its_owner_alone(tmp_path: Path) -> None:
    ca, tls, alice = tmp_path / "ca", tmp_path / "tls", tmp_path / "alice"
    steps = ("ca", str(ca)), ("server", str(tls), "127.0.0.1"), ("node", str(alice), "alice", "al")
    for step in steps:
        assert call("make_keys.sh", *step).returncode == 0
    first = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(path.relative_to(tmp_path).as_posix() for path in first) == [
        *("alice/al", "alice/al.pub", "alice/alice", "alice/alice.pub"),
        *("ca/ca.crt", "ca/ca.key", "tls/server.csr", "tls/server.key"),
    ]
    for step in steps:
        call("make_keys.sh", *step)
    assert {path: path.read_bytes() for path in first} == first
    for private in (ca / "ca.key", tls / "server.key", alice / "alice"):
        assert private.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("host", "option", "name", "other"),
    [
        ("127.0.0.1", "-checkip", "127.0.0.1", "127.0.0.2"),
        ("10.1.2.3", "-checkip", "10.1.2.3", "10.1.2.4"),
        ("::1", "-checkip", "::1", "::2"),
        ("site.example.org", "-checkhost", "site.example.org", "example.org"),
    ],
)
def test_the_authority_signs_for_the_host_and_for_a_server_alone(
    tmp_path: Path, host: str, option: str, name: str, other: str
) -> None:
    call("make_keys.sh", "ca", str(tmp_path / "ca"))
    call("make_keys.sh", "server", str(tmp_path / "tls"), host)
    signed = tmp_path / "server.pem"
    request = str(tmp_path / "tls" / "server.csr")
    signed.write_text(call("make_keys.sh", "sign", str(tmp_path / "ca"), request).stdout)
    asked = ("x509", "-noout", "-in", str(signed))
    assert "does match" in openssl(*asked, option, name)
    assert "does NOT match" in openssl(*asked, option, other)
    chain = ("verify", "-x509_strict", "-CAfile", str(tmp_path / "ca" / "ca.crt"))
    assert "OK" in openssl(*chain, "-purpose", "sslserver", str(signed))
    said = openssl(*asked, "-text")
    assert "CA:FALSE" in said and "TLS Web Client" not in said


@pytest.mark.parametrize(
    "script", ["make_keys.sh", "superlink.sh", "supernode.sh", "run.sh", "proxy.sh", "apps.sh"]
)
def test_scripts_say_what_they_want(script: str) -> None:
    done = call(script)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Flower's programs, which repeat their words; the SuperNode ends at once with 7."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("flwr", "flower-superlink", "flower-superexec", "flower-supernode"):
        end = "exit 7" if name == "flower-supernode" else ""
        (folder / name).write_text(f'#!/bin/sh\nprintf "%s " {name} "$@"\necho\n{end}\n')
        (folder / name).chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    return folder


def path_with(programs: Path) -> str:
    return f"{programs}{os.pathsep}{os.environ['PATH']}"


def test_the_superlink_is_on_loopback_alone_and_remembers(programs: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    done = call(
        "superlink.sh",
        str(state),
        "8123",
        "--log-file",
        "x",
        PATH=path_with(programs),
        PFL_AS_ROOT="1",
        PFL_BIND="0.0.0.0",
    )
    assert done.returncode == 0, done.stderr
    said = f" {done.stdout} "
    assert " --host 127.0.0.1 --port 8123 " in said and "0.0.0.0" not in said
    assert f" --database {state}/link.db " in said and " --enable-supernode-auth " in said
    assert " --isolation subprocess " in said and " --log-file x " in said
    assert (state / "loopback.key").stat().st_mode & 0o077 == 0
    certificate = (state / "loopback.crt").read_bytes()
    apart = call(
        "superlink.sh", str(state), PATH=path_with(programs), PFL_AS_ROOT="1", PFL_APPS="apart"
    )
    assert " --isolation process " in apart.stdout and " --port 8000 " in apart.stdout
    assert (state / "loopback.crt").read_bytes() == certificate


@pytest.mark.skipif(os.getuid() != 0, reason="only root is refused")
def test_root_runs_no_apps_of_others(programs: Path, tmp_path: Path) -> None:
    done = call("superlink.sh", str(tmp_path / "x"), PATH=path_with(programs), PFL_AS_ROOT="")
    assert done.returncode == 2 and "not root" in done.stderr and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("9094",), "flower-superexec --runtime-api-address 127.0.0.1:9094 --insecure"),
        (
            ("8000", "l.crt", "--executor", "subprocess"),
            "flower-superexec --runtime-api-address 127.0.0.1:8000 --root-certificates l.crt "
            "--executor subprocess",
        ),
    ],
)
def test_apps_run_as_somebody_else(programs: Path, arguments: tuple[str, ...], words: str) -> None:
    done = call("apps.sh", *arguments, PATH=path_with(programs))
    assert done.stdout.strip() == words


def node_keys(folder: Path) -> Path:
    call("make_keys.sh", "node", str(folder), "alice")
    (folder / "ca.crt").write_text("")
    return folder


@contextmanager
def supernode(programs: Path, keys: Path, site: str, **environment: str) -> Iterator[Path]:
    log = programs / "node.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(SCRIPTS / "supernode.sh"), str(keys), "alice", site, 'role="honest"'],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "PATH": path_with(programs),
                "PYTHONPATH": str(ROOT),
                "PFL_PAUSE": "0.2",
                **environment,
            },
        )
    try:
        yield log
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 143


def test_a_supernode_is_started_again_until_it_is_stopped(programs: Path, tmp_path: Path) -> None:
    with supernode(programs, node_keys(tmp_path / "keys"), "127.0.0.1:1") as log:
        wait_until(lambda: log.read_text().count("flower-supernode --superlink") >= 4, "4", 60)
    said = log.read_text()
    assert "the SuperNode ended with 7; it is started again in 0.2 s" in said
    assert "127.0.0.1:1 cannot be asked what time it is" in said
    assert "apps run as" in said and "--isolation subprocess" in said
    before = log.read_text()
    time.sleep(1)
    assert log.read_text() == before


def test_a_supernode_whose_apps_run_apart_says_nothing_of_them(
    programs: Path, tmp_path: Path
) -> None:
    keys = node_keys(tmp_path / "keys")
    with supernode(programs, keys, "127.0.0.1:1", PFL_APPS="apart", PFL_NODE_PORT="9555") as log:
        wait_until(lambda: "--isolation process" in log.read_text(), "a start", 60)
    assert "apps run as" not in log.read_text() and "--port 9555" in log.read_text()


def test_a_key_that_is_not_there_is_one_line(programs: Path, tmp_path: Path) -> None:
    keys = node_keys(tmp_path / "keys")
    done = call("supernode.sh", str(keys), "bob", "127.0.0.1:1", PATH=path_with(programs))
    assert done.returncode == 2
    assert done.stderr == (
        f"supernode.sh: {keys}/bob: expected a file that this account can read\n"
    )


@contextmanager
def dated(folder: Path, ahead: float) -> Iterator[str]:
    """Serve over TLS with a clock that is so many seconds ahead of this one."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(403)
            self.send_header("Date", self.date_time_string(time.time() + ahead))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    loopback_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "loopback.crt", folder / "loopback.key")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("theirs", "code", "said"),
    [
        (0.0, 0, ""),
        (-2.0, 0, ""),
        (60.0, 0, ""),
        (-6.0, 1, "s ahead of the site"),
        (310.0, 1, "s behind the site"),
    ],
)
def test_a_wrong_clock_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], theirs: float, code: int, said: str
) -> None:
    with dated(tmp_path, theirs) as place:
        assert clock.main(place, str(tmp_path / "loopback.crt")) == code
    lines = capsys.readouterr().err
    assert lines.count("\n") == (1 if said else 0) and said in lines
    assert not said or "401" in lines


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


def test_the_script_that_runs_says_that_it_is_a_site(programs: Path) -> None:
    """With a ``flwr`` that repeats its words."""
    (programs / "flwr").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    keys = 'users=3 strategic-users="2"'
    done = call("run.sh", "site", keys, "--format", "json", PATH=path_with(programs))
    first, app, *words = done.stdout.splitlines()
    assert (first, Path(app).resolve()) == ("run", ROOT)
    assert words == ["site", "--stream", "--run-config", f"site=true {keys}", "--format", "json"]


def test_what_does_not_come_is_told_with_the_logs(tmp_path: Path) -> None:
    made = Site(tmp_path / "site")
    made.start("run", "sh", "-c", "echo refused")
    with pytest.raises(TimeoutError, match="in vain: a round; run has ended") as caught:
        made.wait(lambda: False, "a round", during="run")
    assert caught.value.__notes__ == ["run: refused"]
    with pytest.raises(TimeoutError, match=r"in vain: a round\n"):
        made.wait(lambda: False, "a round", patience=0.1)
    made.wait(lambda: "refused" in made.log("run"), "a word", during="run")
