"""What a round takes at a site, and how much of that is Flower's own: ``round_time.py [ROUNDS]``.

    python -m experiments.deployment.round_time 5

starts a whole site on this machine's loopback, with nginx and three SuperNodes, and runs three apps
on it, one after another: an empty one, which sends a message to every node and gets it back, by
Flower's own ``send_and_receive``; the same that imports torch, as an app that learns does; and this
one, on the digits. It prints the median seconds of a round after the first.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from experiments.deployment.loopback import Site, site
from experiments.deployment.machine import PATIENCE
from experiments.running.engines import ROOT
from experiments.running.superlink import COMPLETED, run_status, script
from pfl_flower.run.rounds import read_rounds
from pfl_flower.support.errors import RunFailedError
from pfl_flower.support.files import replace_file

NODES = {"alice": "honest", "bob": "honest", "eve": "strategic"}
PYPROJECT = """
[project]
name = "{name}"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "nobody"
[tool.flwr.app.components]
serverapp = "empty:server"
clientapp = "empty:client"
[tool.flwr.app.config]
rounds = 1
nodes = 1
output = ""
"""
APP = """
import time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()


@client.train()
def train(message, context):
    {body}
    return Message(message.content, reply_to=message)


@server.main()
def main(grid, context):
    keys, seconds = context.run_config, []
    while len(nodes := list(grid.get_node_ids())) < keys["nodes"]:
        time.sleep(1)
    for number in range(keys["rounds"]):
        content = RecordDict({{"config": ConfigRecord({{"round": number}})}})
        began = time.perf_counter()
        asked = [Message(content, node, "train", group_id=str(number)) for node in nodes]
        answered = [one for one in grid.send_and_receive(asked, timeout=600) if one.has_content()]
        assert len(answered) == len(nodes)
        seconds.append(time.perf_counter() - began)
    Path(keys["output"]).write_text(" ".join(map(str, seconds)))
"""


def empty_app(folder: Path, body: str) -> Path:
    """Write an app whose ClientApp does this and sends back what came."""
    folder.mkdir(parents=True)
    replace_file(folder / "pyproject.toml", PYPROJECT.format(name=folder.name))
    replace_file(folder / "empty.py", APP.format(body=body))
    return folder


def run_app(place: Site, app: Path, keys: str) -> None:
    """Run an app at a site to its end.

    Raises
    ------
    RunFailedError
        If it does not end well, with the last that it said.
    """
    name = f"run-{app.name}"
    place.start(name, script("flwr"), "run", str(app), "site", "--stream", "--run-config", keys)
    place.wait(lambda: place.ended(name), f"the end of {name}", 8 * PATIENCE)
    if run_status(said := place.log(name), place.environment) != COMPLETED:
        raise RunFailedError(f"{name}: {said[-1000:]}")


def empty_rounds(place: Site, name: str, body: str, rounds: int) -> list[float]:
    """Return the seconds of an empty app's rounds."""
    app, output = empty_app(place.folder / name, body), place.folder / f"{name}.txt"
    run_app(place, app, f"rounds={rounds} nodes={len(NODES)} output='{output}'")
    return [float(word) for word in output.read_text().split()]


def our_rounds(place: Site, rounds: int) -> list[float]:
    """Return the seconds of this app's rounds, on the digits."""
    output = place.folder / "out"
    waits = f"node-timeout={PATIENCE} reply-timeout={PATIENCE} min-nodes={len(NODES)}"
    keys = f"site=true name='ours' users={len(NODES)} strategic-users='2' rounds={rounds} {waits}"
    run_app(place, ROOT, f"{keys} evaluate-every=0 output-dir='{output}'")
    return [row["seconds"] for row in read_rounds(output / "ours" / "rounds.csv")[1:]]


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of all rounds of the three apps on one site."""
    with site(folder) as place:
        place.environment["PYTHONPATH"] = str(ROOT)
        place.start_server()
        place.register(*NODES)
        for name, role in NODES.items():
            place.start_node(name, role)
        place.wait(lambda: place.online() == len(NODES), "the registered nodes")
        return {
            "an empty app": empty_rounds(place, "empty", "pass", rounds),
            "an empty app that imports torch": empty_rounds(
                place, "with-torch", "import torch", rounds
            ),
            "this app": our_rounds(place, rounds),
        }


def main() -> int:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder) / "site", rounds)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in found.items()}
    for name, median in medians.items():
        ratio = medians["this app"] / median
        each = " ".join(f"{one:.1f}" for one in found[name])
        print(f"{name}: {median:.1f} s a round ({each}); this app is {ratio:.2f} of it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
