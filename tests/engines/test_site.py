"""A whole site on loopback, by its scripts: SuperLink, proxy and registered SuperNodes."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import ssl
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from google.protobuf.message import Message
from numpy.typing import NDArray

from experiments.deployment.loopback import Site, site
from experiments.deployment.machine import PATIENCE
from experiments.running.superlink import COMPLETED, run_status
from pfl_flower import client_app, server_app
from pfl_flower.run.config import parse_config
from pfl_flower.run.rounds import read_rounds
from pfl_flower.transport.inprocess import run_in_process

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

NODES = {"alice": "honest", "bob": "honest", "eve": "strategic"}
STRANGER = "mallory"
RUN = {
    "name": "site",
    "rounds": 2,
    "users": 3,
    "strategic-users": "2",
    "points-per-user": "30",
    "evaluate-every": 0,
    "save-trajectory": True,
}
"""``run.sh`` says that it is a site."""


@pytest.fixture(autouse=True, scope="module")
def needs_nginx() -> None:
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    assert shutil.which("nginx", path=places), "install nginx: apt-get install nginx-light"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose three registered nodes are online."""
    with site(tmp_path_factory.mktemp("site")) as made:
        open_site(made)
        yield made
    assert made.members() == []


def open_site(made: Site) -> None:
    made.start_server()
    made.register(*NODES)
    for name, role in NODES.items():
        made.start_node(name, role)
    made.wait(lambda: made.online() == len(NODES), "the registered nodes")


def settings(made: Site, **keys: object) -> dict[str, object]:
    places = {"output-dir": made.folder / "out", "min-nodes": len(NODES)}
    waits = {"node-timeout": PATIENCE, "reply-timeout": PATIENCE}
    return {**RUN, **places, **waits, **{key.replace("_", "-"): v for key, v in keys.items()}}


def in_process(folder: Path, **keys: object) -> NDArray[np.float64]:
    flat = {**RUN, **{key.replace("_", "-"): value for key, value in keys.items()}}
    config = parse_config({**flat, "site": True, "output-dir": str(folder)})
    run_in_process(
        server_app.app,
        client_app.app,
        nodes=len(NODES),
        run_config=config.flat(),
        node_configs={2: {"role": "strategic"}} if flat["strategic-users"] == "2" else None,
    )
    return np.load(folder / "site" / "trajectory.npy")


def ask(port: int, path: str, body: bytes, trusted: Path, headers: dict[str, str]) -> int:
    request = urllib.request.Request(f"https://127.0.0.1:{port}{path}", body, headers)
    context = ssl.create_default_context(cafile=str(trusted))
    try:
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        return refusal.code


def outside(made: Site, path: str, body: bytes = b"", **headers: str) -> int:
    """Return the status that somebody with the CA's certificate gets from the site."""
    given = {"Content-Type": "application/protobuf", **headers}
    return ask(made.port, path, body, made.authority / "ca.crt", given)


def signed(made: Site, node: str, seconds: float = 0.0) -> tuple[dict[str, str], bytes]:
    """Return the headers of a participant whose clock is ahead by so much, and its public key."""
    text = (made.keys(node) / node).read_bytes()
    key = load_ssh_private_key(text, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    public = public_key_to_bytes(key.public_key())
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    stamp = at.isoformat()
    proof = sign_message(key, stamp.encode("ascii"))
    headers = {
        "flwr-public-key": b64encode(public).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": b64encode(proof).decode(),
    }
    return headers, public


def node_ids(made: Site) -> dict[str, int]:
    """Return the id that each participant's log says it has."""
    found = {}
    for name in NODES:
        lines = [line for line in made.log(name).splitlines() if "SuperNode ID: " in line]
        found[name] = int(lines[-1].rpartition(" ")[2])
    return found


def all_paths() -> list[str]:
    """Return every path that Flower's SuperLink serves, but the nodes'."""
    from flwr.supercore.routers import health
    from flwr.supercore.routers.runtime.responses import router as responses
    from flwr.supercore.routers.runtime.router import create_runtime_router
    from flwr.superlink.routers.control.router import router as control

    found = {"/docs", "/openapi.json", "/redoc"}
    routers = [control, create_runtime_router("SuperLink"), responses, health.router]
    while routers:
        for route in routers.pop().routes:
            if hasattr(route, "original_router"):
                routers.append(route.original_router)
            else:
                found.add(route.path)
    return sorted(found)


def test_from_outside_every_path_but_the_nodes_is_refused(place: Site) -> None:
    paths = all_paths()
    for kind in ("control", "runtime"):
        assert sum(path.startswith(f"/v1/{kind}/") for path in paths) >= 10
    assert {path: outside(place, path) for path in paths} == dict.fromkeys(paths, 403)
    # On loopback they are there: it is the proxy that refuses them.
    there = ask(place.link_port, "/health", b"", place.state / "loopback.crt", {})
    assert there in (200, 405)


def test_the_operators_commands_do_nothing_from_outside(place: Site) -> None:
    """What a participant with ``ca.crt`` did before: register a node, and run an app."""
    home = place.folder / "mallorys-home"
    home.mkdir()
    text = (place.folder / "home" / "config.toml").read_text()
    text = text.replace(f":{place.link_port}", f":{place.port}")
    text = text.replace(str(place.state / "loopback.crt"), str(place.authority / "ca.crt"))
    (home / "config.toml").write_text(text)
    ours, place.environment["FLWR_HOME"] = place.environment["FLWR_HOME"], str(home)
    key = place.keys(STRANGER) / f"{STRANGER}.pub"
    try:
        for words in (
            ("supernode", "register", str(key), "site"),
            ("supernode", "list", "site"),
            ("run", ".", "site"),
            ("ls", "site"),
        ):
            done = place.flwr(*words)
            said = done.stdout + done.stderr
            assert "uccessfully" not in said and "online" not in said, said
            assert done.returncode != 0, said
    finally:
        place.environment["FLWR_HOME"] = ours
    assert place.online() == len(NODES)


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("a node's own poll", 200),
        ("no signature", 401),
        ("a stranger's key", 401),
        ("another's node id", 401),
        ("another's signature of another moment", 401),
        ("signed 6 s ahead", 401),
        ("signed 320 s ago", 401),
    ],
)
def test_requests_are_signed_by_the_node_they_name(place: Site, what: str, status: int) -> None:
    ids = node_ids(place)
    headers, _ = signed(place, "alice")
    node = ids["alice"]
    if what == "no signature":
        headers = {}
    elif what == "a stranger's key":
        headers, _ = signed(place, STRANGER)
    elif what == "another's node id":
        node = ids["bob"]
    elif what == "another's signature of another moment":
        headers["flwr-signature"] = signed(place, "alice", -1.0)[0]["flwr-signature"]
    elif what.startswith("signed"):
        headers, _ = signed(place, "alice", 6.0 if "ahead" in what else -320.0)
    body = PullMessagesRequest(node=Node(node_id=node)).SerializeToString()
    assert outside(place, "/v1/fleet/pull-messages", body, **headers) == status


@pytest.mark.parametrize("request_type", [RegisterNodeFleetRequest, ActivateNodeRequest])
def test_nobody_registers_or_revives_a_key_from_outside(
    place: Site, request_type: type[Message]
) -> None:
    headers, public = signed(place, STRANGER)
    named = "register-node" if request_type is RegisterNodeFleetRequest else "activate-node"
    body = request_type(public_key=public).SerializeToString()
    assert outside(place, f"/v1/fleet/{named}", body, **headers) >= 400
    assert place.online() == len(NODES)


def test_nobody_unregisters_even_itself_from_outside(place: Site) -> None:
    headers, _ = signed(place, "eve")
    body = UnregisterNodeFleetRequest(node_id=node_ids(place)["eve"]).SerializeToString()
    assert outside(place, "/v1/fleet/unregister-node", body, **headers) >= 400
    assert place.online() == len(NODES)


def test_strangers_and_doubles_are_refused_and_the_run_is_that_of_one_process(place: Site) -> None:
    """Mallory is not registered, Judy trusts another authority, and there are two Bobs."""
    other = place.folder / "other-ca"
    place.call("make_keys.sh", "ca", str(other))
    place.register("judy")
    judys = place.keys("judy") / "ca.crt"
    judys.unlink()
    judys.symlink_to(other / "ca.crt")
    place.start_node(STRANGER)
    place.start_node("judy")
    place.start_node("bob", name="bobs-double")
    place.run(settings(place))
    place.wait(lambda: place.ended("run"), "the end of the run", 2 * PATIENCE)
    said = place.log("run")
    assert run_status(said, place.environment) == COMPLETED, said[-2000:]
    for refused in (STRANGER, "judy", "bobs-double"):
        log = place.log(refused)
        assert log.count("it is started again") >= 2, log
        assert "RUN" not in log and "SuperNode ID" not in log
        place.stop(refused)
    assert "SSL/TLS handshake error" in place.log("judy")
    assert "CERTIFICATE_VERIFY_FAILED" in place.log("judy")
    assert place.online() == len(NODES)
    trajectory = np.load(place.folder / "out" / "site" / "trajectory.npy")
    expected = in_process(place.folder / "alone")
    assert trajectory.shape == expected.shape
    assert np.abs(trajectory - expected).max() < 1e-9
    assert np.abs(expected[-1] - expected[0]).max() > 0.1


def rows(made: Site, name: str) -> list[dict[str, float]]:
    path = made.folder / "out" / name / "rounds.csv"
    return read_rounds(path)[1:] if path.exists() else []


def ended_as(made: Site) -> str:
    """Wait for the end of the run that ``run.sh`` started last, and return its status."""
    made.wait(lambda: made.ended("run"), "the end of the run", 2 * PATIENCE)
    started = made.log("run").rpartition("Using SuperLink")[2]
    made.wait(lambda: "running" not in run_status(started, made.environment), "its status")
    return run_status(started, made.environment)


SMALL = {
    "dataset": "synthetic-logistic",
    "features": 6,
    "points-per-user": "40",
    "nu": 0.1,
    "checkpoint-every": 1,
    "resume": "auto",
}


def test_a_stop_and_a_killed_superlink_lose_nothing(place: Site) -> None:
    """Stopped in round 2, killed in round 3 or later; nobody registers or starts a node again."""
    keys = settings(place, name="killed", rounds=6, **SMALL)
    place.run(keys)
    place.wait(lambda: len(rows(place, "killed")) >= 1, "a round", during="run")
    (run,) = re.findall(r"started run (\d+)", place.log("run").rpartition("Using SuperLink")[2])
    place.flwr("stop", run, "site")
    assert ended_as(place) == "finished:stopped"
    done = len(rows(place, "killed"))
    place.run(keys)
    place.wait(lambda: len(rows(place, "killed")) > done, "a round after the stop", during="run")
    assert len(place.kill("flower-superlink")) == 1
    place.running["link"].wait()
    place.wait(lambda: place.ended("run"), "the news of the end")
    place.start_link()
    place.wait(lambda: place.online() == len(NODES), "the nodes, by themselves")
    assert ended_as(place) == "finished:failed"
    place.run(keys)
    assert ended_as(place) == COMPLETED
    trajectory = np.load(place.folder / "out" / "killed" / "trajectory.npy")
    expected = in_process(place.folder / "undisturbed", rounds=6, **{**SMALL, "resume": ""})
    assert trajectory.shape == expected.shape
    assert np.abs(trajectory - expected).max() < 1e-9
    assert [row["round"] for row in rows(place, "killed")] == list(range(1, 7))


def test_a_killed_and_a_replaced_node_come_back_as_the_same_user(place: Site) -> None:
    """Bob's SuperNode is killed; later another machine takes up his key, and no memory of his."""
    before = node_ids(place)["bob"]
    keys = settings(place, name="nodes", rounds=7, regularizer="l2", **SMALL)
    place.run({**keys, "reply-timeout": 60.0})
    place.wait(lambda: len(rows(place, "nodes")) >= 1, "a round", during="run")
    assert len(place.kill("flower-supernode", "nodes/bob/bob")) == 1
    place.wait(lambda: place.log("bob").count("SuperNode ID") >= 2, "bob, started again")
    back = len(rows(place, "nodes"))
    place.wait(lambda: len(rows(place, "nodes")) > back + 1, "a round with him", during="run")
    place.stop("bob")
    place.start_node("bob", name="bobs-new-machine")
    assert ended_as(place) == COMPLETED
    assert node_ids(place)["bob"] == before
    assert f"SuperNode ID: {before}" in place.log("bobs-new-machine")
    measured = rows(place, "nodes")
    assert [row["round"] for row in measured] == list(range(1, 8))
    users, lam = RUN["users"], 1.0
    for row in measured:
        assert row["accepted"] + row["rejections"] == users
        assert row["step_norm"] <= row["eta"] * lam * row["accepted"] * (1 + 1e-9)
    assert sum(row["accepted"] == users for row in measured) >= 3


def test_a_clock_that_is_6_s_ahead_is_refused_and_said(place: Site) -> None:
    """Carol's SuperNode is told another time by what Python reads first."""
    place.register("carol")
    wrong = place.folder / "wrong-clock"
    wrong.mkdir()
    (wrong / "sitecustomize.py").write_text(
        "import datetime, time\n"
        "real = time.time\n"
        "time.time = lambda: real() + 6\n"
        "try:\n"
        "    import flwr.supercore.date as date\n"
        "    now = date.now\n"
        "    date.now = lambda: now() + datetime.timedelta(seconds=6)\n"
        "except ImportError:\n"
        "    pass\n"
    )
    place.start_node("carol", PYTHONPATH=str(wrong))
    place.wait(lambda: "it is started again" in place.log("carol"), "a refusal")
    place.stop("carol")
    said = place.log("carol")
    assert "this clock is 6 s ahead of the site" in said and "401" in said
    assert "SuperNode ID" not in said
    place.start_node("carol")
    place.wait(lambda: "SuperNode ID" in place.log("carol"), "the same node, its clock set")
    place.stop("carol")
