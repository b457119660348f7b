"""What nginx lets through, by the script and configuration of a site; no SuperLink yet."""

from __future__ import annotations

import concurrent.futures
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.deployment.loopback import SCRIPTS
from experiments.deployment.machine import answers, free_port, wait_until
from tests.support.recorder import Asked, loopback_certificate, recorder

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("proxy")]

NOBODY = 65534
MIB = 2**20
GENEROUS = "5000"
"""A rate that tests of other things do not meet."""


@pytest.fixture(autouse=True)
def needs_nginx() -> None:
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    assert shutil.which("nginx", path=places), "install nginx: apt-get install nginx-light"


@dataclass
class Proxy:
    """nginx before a stand-in for the SuperLink."""

    folder: Path
    port: int
    link_port: int
    process: subprocess.Popen[bytes]
    requests: Asked

    @property
    def asked(self) -> list[str]:
        """The paths of the requests that were passed on."""
        return self.requests.paths

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "ca" / "ca.crt"))

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> int:
        """Return the status of an answer to a request whose path is sent as it is."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=self.context(), timeout=20
        )
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            connection.putheader("Content-Length", str(len(body)))
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            try:
                connection.endheaders(body)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                pass  # It need not read to the end what it refuses.
            return connection.getresponse().status
        finally:
            connection.close()


def ordinary() -> list[str]:
    """Return what a command begins with to be run by an ordinary account."""
    if os.getuid() != 0:
        return []
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


def make_tls(folder: Path) -> Path:
    """Make a site's certificates in a folder, readable by the ordinary account alone."""
    keys, tls, ca = str(SCRIPTS / "make_keys.sh"), folder / "tls", folder / "ca"
    subprocess.run([keys, "ca", str(ca)], check=True, capture_output=True)
    subprocess.run([keys, "server", str(tls), "127.0.0.1"], check=True, capture_output=True)
    sign = [keys, "sign", str(ca), str(tls / "server.csr")]
    (tls / "server.pem").write_bytes(subprocess.run(sign, check=True, capture_output=True).stdout)
    if os.getuid() == 0:
        for path in (tls, *tls.iterdir()):
            os.chown(path, NOBODY, NOBODY)
    return tls


@contextmanager
def proxy(rate: str = GENEROUS, link_name: str = "localhost") -> Iterator[Proxy]:
    """Start it as an ordinary account, in a folder that such an account can reach."""
    folder = Path(tempfile.mkdtemp(prefix="pfl-proxy-", dir="/tmp"))
    folder.chmod(0o755)
    tls, port, link_port = make_tls(folder), free_port(), free_port()
    loopback_certificate(folder, link_name)
    arguments = [str(tls), str(folder / "loopback.crt"), str(port), str(link_port)]
    # A folder of its own: an ordinary account need not be able to read where the tests stand.
    scripts = shutil.copytree(SCRIPTS, folder / "scripts")
    with recorder(folder / "loopback.crt", folder / "loopback.key", link_port) as asked:
        process = subprocess.Popen(
            [*ordinary(), str(scripts / "proxy.sh"), *arguments],
            env={**os.environ, "PFL_BIND": "127.0.0.1", "PFL_RATE": rate},
            stderr=subprocess.PIPE,
            cwd=folder,
        )
        try:
            wait_until(lambda: answers(port) or process.poll() is not None, "nginx", 20)
            assert process.poll() is None, process.stderr and process.stderr.read()
            yield Proxy(folder, port, link_port, process, asked)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def site() -> Iterator[Proxy]:
    with proxy() as started:
        yield started


@pytest.mark.parametrize(
    ("method", "path", "status", "passed"),
    [
        ("POST", "/v1/fleet/pull-messages", 200, "/v1/fleet/pull-messages"),
        ("POST", "/v1/fleet/push-object", 200, "/v1/fleet/push-object"),
        ("POST", "/v1/fleet/any-that-flower-adds", 200, "/v1/fleet/any-that-flower-adds"),
        ("GET", "/v1/fleet/pull-messages", 403, None),
        ("PUT", "/v1/fleet/push-object", 403, None),
        ("DELETE", "/v1/fleet/pull-messages", 403, None),
        ("POST", "/v1/fleet", 403, None),
        ("POST", "/v1/fleetX/x", 403, None),
        ("POST", "/V1/FLEET/pull-messages", 403, None),
        ("POST", "/", 403, None),
        ("GET", "/health", 403, None),
        ("GET", "/docs", 403, None),
        ("GET", "/openapi.json", 403, None),
        ("POST", "/v1/control/start-run", 403, None),
        ("POST", "/v1/control/register-node", 403, None),
        ("POST", "/v1/control/stop-run", 403, None),
        ("POST", "/v1/runtime/acquire-task", 403, None),
        ("POST", "/v1/runtime/pull-task-input", 403, None),
        ("POST", "/v1/fleet/../control/start-run", 403, None),
        ("POST", "/v1/fleet/%2e%2e/control/start-run", 403, None),
        ("POST", "/v1/fleet/..%2fcontrol/start-run", 403, None),
        ("POST", "/v1/fleet//../../control/start-run", 403, None),
        ("POST", "/v1/fleet/..%5ccontrol%5cstart-run", 200, "/v1/fleet/..%5Ccontrol%5Cstart-run"),
        ("POST", "/v1/fleet/%252e%252e/control/start-run", 200, None),
        ("POST", "//v1/control/start-run", 403, None),
        ("POST", "/v1/control/start-run/../../fleet/x", 200, "/v1/fleet/x"),
        ("POST", "/v1/control/start-run%3f/../../fleet/x", 200, "/v1/fleet/x"),
        ("POST", "/v1/control/start-run#/../../fleet/x", 403, None),
        ("POST", "/v1/control/start-run?/v1/fleet/x", 403, None),
        ("POST", "/v1/fleet/x?y=/../../control/", 200, "/v1/fleet/x?y=/../../control/"),
        ("POST", "http://127.0.0.1/v1/control/start-run", 403, None),
        ("POST", "/../v1/control/start-run", 400, None),
    ],
)
def test_fleet_alone_is_passed_and_no_spelling_leads_elsewhere(
    site: Proxy, method: str, path: str, status: int, passed: str | None
) -> None:
    site.asked.clear()
    assert site.ask(method, path) == status
    assert all(sent.startswith("/v1/fleet/") for sent in site.asked)
    assert len(site.asked) == (status == 200)
    if passed is not None:
        assert site.asked == [passed]


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("/v1/fleet/push-object", 5 * MIB + 4096, 200),
        ("/v1/fleet/push-object", 6 * MIB + 1, 413),
        ("/v1/fleet/push-object/", 257 * 1024, 413),
        ("/v1/fleet/push-messages", 250 * 1024, 200),
        ("/v1/fleet/push-messages", 257 * 1024, 413),
        ("/v1/control/start-run", 100 * 1024, 403),
        ("/v1/control/start-run", 7 * MIB, 413),
    ],
)
def test_bodies_are_bounded_by_what_they_may_hold(
    site: Proxy, path: str, size: int, status: int
) -> None:
    site.asked.clear()
    assert site.ask("POST", path, bytes(size)) == status
    assert len(site.asked) == (status == 200)


def test_flowers_objects_fit(site: Proxy) -> None:
    from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as CHUNK

    assert site.ask("POST", "/v1/fleet/push-object", bytes(CHUNK + 64 * 1024)) == 200


@pytest.mark.parametrize(
    ("newest", "admitted"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_no_tls_older_than_1_2(site: Proxy, newest: ssl.TLSVersion, admitted: bool) -> None:
    context = site.context()
    # The client's own standards are lowered, so that it is the server that refuses.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = newest
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as plain:
        if admitted:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as talk:
                assert talk.version() is not None
            return
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol"):
            context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_without_tls_nothing_is_said(site: Proxy) -> None:
    plain = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    plain.request("POST", "/v1/fleet/pull-messages")
    assert plain.getresponse().status == 400
    plain.close()


def test_who_asks_is_what_the_proxy_sees(site: Proxy) -> None:
    site.requests.senders.clear()
    given = {"X_Forwarded_For": "10.9.8.7"}
    assert site.ask("POST", "/v1/fleet/pull-messages", **given) == 200
    assert site.requests.senders == ["127.0.0.1"]


def test_nobody_else_reads_the_servers_key(site: Proxy) -> None:
    key = site.folder / "tls" / "server.key"
    assert key.stat().st_mode & 0o077 == 0
    owner = key.stat().st_uid
    assert os.stat(f"/proc/{site.process.pid}").st_uid == owner
    if os.getuid() == 0:
        assert owner == NOBODY
        other = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", "cat", str(key)]
        assert subprocess.run(other, capture_output=True, check=False).returncode != 0


def test_more_than_the_rate_is_told_to_wait() -> None:
    """At 3 requests a second, a burst of 30 passes; of 90 at once no more, and later ones do."""
    with proxy(rate="3") as small:
        with concurrent.futures.ThreadPoolExecutor(8) as crowd:
            began = time.monotonic()
            answered = list(
                crowd.map(lambda _: small.ask("POST", "/v1/fleet/pull-messages"), range(90))
            )
            took = time.monotonic() - began
        assert set(answered) == {200, 503}
        assert 30 <= answered.count(200) <= 31 + 3 * took + 1
        time.sleep(1)
        assert small.ask("POST", "/v1/fleet/pull-messages") == 200


def test_one_address_holds_a_bounded_number_of_connections() -> None:
    """Each has sent half a request; what other addresses send is answered meanwhile."""
    with proxy() as small:
        head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        held = []
        try:
            for _ in range(64):
                plain = socket.create_connection(("127.0.0.1", small.port), timeout=10)
                talk = small.context().wrap_socket(plain, server_hostname="127.0.0.1")
                talk.sendall(head)
                held.append(talk)
            time.sleep(1)
            assert small.ask("POST", "/v1/fleet/pull-messages") == 503
            assert small.asked == []
        finally:
            for talk in held:
                talk.close()
        wait_until(lambda: small.ask("POST", "/v1/fleet/pull-messages") == 200, "a place", 20)


def test_another_program_on_the_superlinks_port_is_not_it() -> None:
    """Its certificate is not the one that superlink.sh made."""
    with proxy(link_name="elsewhere") as misled:
        assert misled.ask("POST", "/v1/fleet/pull-messages") == 502
        assert misled.asked == []


def test_a_superlink_that_is_away_is_waited_for() -> None:
    """Flower's SuperNode tries again at what the proxy answers then, and when it is too much."""
    from flwr.supercore.retry.http_retry import _RETRYABLE_STATUS_CODES

    with proxy(link_name="elsewhere") as alone:
        assert alone.ask("POST", "/v1/fleet/pull-messages") in _RETRYABLE_STATUS_CODES
    assert 503 in _RETRYABLE_STATUS_CODES


def refused(folder: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [str(SCRIPTS / "proxy.sh"), *arguments],
        env={**os.environ, "PFL_AS_ROOT": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        cwd=folder,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_what_cannot_be_started_is_one_line(tmp_path: Path) -> None:
    tls = make_tls(tmp_path)
    loopback_certificate(tmp_path)
    good = str(tls), str(tmp_path / "loopback.crt")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "dirname").symlink_to(shutil.which("dirname") or "")
    absent = refused(tmp_path, str(tmp_path), good[1])
    assert (
        absent == f"proxy.sh: {tmp_path}/server.pem: expected a file that this account can read\n"
    )
    assert "0x50: expected a whole number" in refused(tmp_path, *good, PFL_RATE="0x50")
    assert "8443;: expected a whole number" in refused(tmp_path, *good, "8443;")
    (tls / "server.key").chmod(0o640)
    assert "its owner alone" in refused(tmp_path, *good)
    if os.getuid() == 0:
        assert "not root" in refused(tmp_path, *good, PFL_AS_ROOT="")


def test_without_nginx_it_says_what_to_install(tmp_path: Path) -> None:
    """In a copy whose search path ends where nginx is not."""
    text = (SCRIPTS / "proxy.sh").read_text()
    searched = "PATH=$PATH:/usr/sbin:/sbin"
    assert searched in text
    (tmp_path / "proxy.sh").write_text(text.replace(searched, ""))
    (tmp_path / "proxy.sh").chmod(0o755)
    done = subprocess.run(
        ["bash", str(tmp_path / "proxy.sh"), "a", "b"],
        env={"PATH": str(tmp_path)},
        executable=shutil.which("bash"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "proxy.sh: nginx is not installed: apt-get install nginx-light\n"
