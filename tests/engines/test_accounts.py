"""A site whose parts have accounts of their own, and an app that reads all it can.

It takes root, who alone makes accounts, and an interpreter that they may run; without either it is
left out, with a warning that says what it takes. The accounts are removed afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments.deployment.loopback import SCRIPTS, Site
from experiments.deployment.machine import PATIENCE
from experiments.deployment.round_time import PYPROJECT, run_app
from experiments.running.engines import ROOT
from pfl_flower.run.rounds import read_rounds
from pfl_flower.support.files import replace_file

pytestmark = pytest.mark.slow

ACCOUNTS = {
    "proxy": "pfl-web",
    "link": "pfl-link",
    "server-apps": "pfl-server-app",
    "alice": "pfl-alice",
    "alice-apps": "pfl-alice-app",
    "bob": "pfl-bob",
    "bob-apps": "pfl-bob-app",
}
"""What is started, and as whom."""
NODES = ("alice", "bob")
HOSTILE = '''
import json, os, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()


def taken(paths):
    """Return which files can be read, and of which processes of others the environment."""
    found = []
    for path in [*paths, *Path("/proc").glob("[0-9]*/environ")]:
        try:
            foreign = not str(path).startswith("/proc") or path.stat().st_uid != os.getuid()
            if foreign and Path(path).read_bytes():
                found.append(str(path))
        except OSError:
            pass
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid != os.getuid():
                os.kill(int(process.name), 0)
                found.append(str(process))
        except OSError:
            pass
    return found


@client.train()
def train(message, context):
    found = taken(context.run_config["paths"].split("|"))
    said = {"who": str(context.node_config["state-dir"]), "uid": os.getuid(), "found": found}
    return Message(RecordDict({"config": ConfigRecord(said)}), reply_to=message)


@server.main()
def main(grid, context):
    keys = context.run_config
    while len(nodes := list(grid.get_node_ids())) < keys["nodes"]:
        time.sleep(1)
    asked = [Message(RecordDict(), node, "train", group_id="1") for node in nodes]
    came = [dict(one.content["config"]) for one in grid.send_and_receive(asked, timeout=600)]
    own = {"who": "server", "uid": os.getuid(), "found": taken(keys["paths"].split("|"))}
    Path(keys["output"]).write_text(json.dumps([own, *came]))
'''


def _left_out(why: str) -> None:
    # A reason for leaving a test out is shown on demand, a warning always.
    warnings.warn(f"a site with accounts of its own is not tested: {why}", stacklevel=1)
    pytest.skip(why)


@contextmanager
def accounts() -> Iterator[dict[str, int]]:
    """Make the accounts, yield their numbers, and remove them."""
    if os.getuid() != 0:
        _left_out(f"expected root, who alone makes accounts: sudo pytest -m slow {__file__}")
    made: dict[str, int] = {}
    try:
        for account in ACCOUNTS.values():
            words = ["--system", "--no-create-home", "--user-group", "--shell", "/usr/sbin/nologin"]
            subprocess.run(["useradd", *words, account], check=True)
            shown = subprocess.run(["id", "-u", account], check=True, capture_output=True)
            made[account] = int(shown.stdout)
        tried = [sys.executable, "-c", "import flwr, torch"]
        account = ACCOUNTS["alice-apps"]
        try:
            subprocess.run(tried, check=True, user=account, group=account, extra_groups=[], cwd="/")
        except (OSError, subprocess.CalledProcessError):
            _left_out(f"{sys.executable}: expected an interpreter that other accounts may run")
        yield made
    finally:
        for account in made:
            subprocess.run(["userdel", account], check=True)


class Apart(Site):
    """A site each of whose programs is started as its own account."""

    def start(self, name: str, *command: str, **environment: str) -> None:
        """Start a program as its account; what the operator does is done as root."""
        account = ACCOUNTS.get(name)
        if account is None:
            return super().start(name, *command, **environment)
        home = self.own(f"home-{account}", account)
        given = {**self.environment, "FLWR_HOME": str(home), "HOME": str(home), **environment}
        del given["PFL_AS_ROOT"]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**given, "PFL_APPS": "apart"},
                cwd=home,
                start_new_session=True,
                user=account,
                group=account,
                extra_groups=[],
            )
        return None

    def own(self, name: str, account: str) -> Path:
        """Return a folder that is an account's alone, with all that is in it."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)
        for path in [folder, *folder.rglob("*")]:
            shutil.chown(path, account, account)
        return folder

    def start_all(self) -> None:
        """Start the server, two nodes, and what runs apps on each."""
        self.own("tls", ACCOUNTS["proxy"])
        self.own("link", ACCOUNTS["link"])
        self.start_server()
        loopback = str(self.state / "loopback.crt")
        self.start("server-apps", str(SCRIPTS / "apps.sh"), str(self.link_port), loopback)
        self.register(*NODES)
        for node in NODES:
            (self.keys(node) / "ca.crt").unlink()
            shutil.copy(self.authority / "ca.crt", self.keys(node) / "ca.crt")
            (self.folder / "nodes").chmod(0o711)
            self.own(f"nodes/{node}", ACCOUNTS[node])
            self.start_node(node)
            port = str(self.node_ports[node])
            self.start(f"{node}-apps", str(SCRIPTS / "apps.sh"), port)
        self.wait(lambda: self.online() == len(NODES), "the nodes")


def test_an_app_reads_what_is_its_own_and_nothing_else() -> None:
    folder = Path(tempfile.mkdtemp(prefix="pfl", dir="/tmp"))
    folder.chmod(0o711)
    try:
        with accounts() as numbers:
            place = Apart(folder / "site")
            place.folder.chmod(0o711)
            place.environment["PYTHONPATH"] = str(ROOT)
            try:
                _tried(place, numbers)
            finally:
                place.close()
    finally:
        shutil.rmtree(folder)


def _tried(place: Apart, numbers: dict[str, int]) -> None:
    place.start_all()
    own = {"server": ["out"], **{n: [f"state-{n}", f"data-{n}"] for n in NODES}}
    for who, folders in own.items():
        for name in folders:
            replace_file(place.own(name, ACCOUNTS[f"{who}-apps"]) / "secret", who)
            place.own(name, ACCOUNTS[f"{who}-apps"])
    secrets = [f"{name}/secret" for folders in own.values() for name in folders]
    keys = ["ca/ca.key", "tls/server.key", "link/link.db", "link/loopback.key"]
    paths = [place.folder / one for one in [*secrets, *keys, *(f"nodes/{n}/{n}" for n in NODES)]]
    assert all(path.read_bytes() for path in paths)
    app = place.folder / "hostile"
    app.mkdir()
    text = PYPROJECT.format(name="hostile").replace("rounds = 1", 'paths = ""')
    replace_file(app / "pyproject.toml", text)
    replace_file(app / "empty.py", HOSTILE)
    output = place.folder / "out" / "found.json"
    given = "|".join(map(str, paths))
    run_app(place, app, f"nodes={len(NODES)} output='{output}' paths='{given}'")
    found = {Path(one["who"]).name: one for one in json.loads(output.read_text())}
    # Each app has its own account, reads what that owns, and finds nobody's process.
    for who, folders in own.items():
        said = found[who if who == "server" else f"state-{who}"]
        assert said["uid"] == numbers[ACCOUNTS[f"{who}-apps"]]
        assert said["found"] == [str(place.folder / name / "secret") for name in folders]

    keys = f"site=true name='ours' users={len(NODES)} strategic-users='none' rounds=1"
    waits = f"min-nodes={len(NODES)} node-timeout={PATIENCE} reply-timeout={PATIENCE}"
    place.folder.joinpath("out").chmod(0o700)
    more = f"points-per-user='30' checkpoint-every=1 output-dir='{place.folder / 'out'}'"
    run_app(place, ROOT, f"{keys} {waits} {more}")
    rows = read_rounds(place.folder / "out" / "ours" / "rounds.csv")
    assert rows[-1]["accepted"] == len(NODES)
    for node in NODES:
        kept = list((place.folder / f"state-{node}").rglob("*.pfl"))
        assert kept and {path.stat().st_uid for path in kept} == {numbers[ACCOUNTS[f"{node}-apps"]]}
