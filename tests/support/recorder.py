"""A stand-in for the SuperLink, with its certificate: it writes down what it is asked."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple


class Asked(NamedTuple):
    """The paths of requests, and who they are said to be from."""

    paths: list[str]
    senders: list[str | None]


def loopback_certificate(folder: Path, name: str = "localhost") -> None:
    """Make ``loopback.crt`` and ``loopback.key``, as superlink.sh does, for a name."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName=DNS:{name}"),
            *("-keyout", str(folder / "loopback.key"), "-out", str(folder / "loopback.crt")),
        ],
        check=True,
        capture_output=True,
    )


@contextmanager
def recorder(certificate: Path, key: Path, port: int) -> Iterator[Asked]:
    """Answer 200 to everything on a port of loopback; yield what came, as it came."""
    asked = Asked([], [])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked.paths.append(self.path)
            asked.senders.append(self.headers.get("X-Forwarded-For"))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_PUT = do_DELETE = do_HEAD = do_POST

        def log_message(self, *_: object) -> None:
            return

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()
