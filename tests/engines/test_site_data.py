"""Three registered SuperNodes on loopback, each with a table of its own, and a server with none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pfl_flower as pfl
from experiments.deployment.loopback import site
from experiments.deployment.machine import PATIENCE
from tests.support.apart import APART, SITE, TOGETHER, put_together, write_apart

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

RUN = {**SITE, "evaluate-every": 2}
NODES = {"alice": "honest", "bob": "honest", "eve": "strategic"}


def test_nodes_learn_from_files_of_their_own_what_they_would_together(tmp_path: Path) -> None:
    """The server evaluates on its own test set, and repeats what the nodes say of theirs."""
    places = write_apart(tmp_path / "data")
    with site(tmp_path / "site") as made:
        made.start_server()
        made.register(*NODES)
        for (name, role), place in zip(NODES.items(), places, strict=True):
            (made.folder / f"data-{name}").symlink_to(place)
            made.start_node(name, role)
        made.wait(lambda: made.online() == len(NODES), "the registered nodes")
        keys = {name: value for name, value in {**RUN, **APART}.items() if name != "site"}
        keys |= {
            "output-dir": made.folder / "out",
            "test-data": tmp_path / "data" / "test.csv",
            "min-nodes": len(NODES),
            "node-timeout": PATIENCE,
            "reply-timeout": PATIENCE,
        }
        made.run(keys)
        made.wait(lambda: made.ended("run"), "the end of the run", 4 * PATIENCE)
        log = made.log("run")
    folder = made.folder / "out" / "apart"
    assert (folder / "summary.json").exists(), log[-2000:]
    found, said = pfl.load(folder), json.loads((folder / "summary.json").read_text())
    assert isinstance(found, pfl.Result) and found.trajectory is not None
    assert said["passed"], said["checks"]
    assert {"own_theta_mean", "own_rho_mean"} <= set(said["nodes_word"])
    assert "accuracy_true" in said["metrics"] and "accuracy_true" not in said["nodes_word"]
    # Which of the honest nodes acts for which user is theirs to draw.
    first = [place for place in places[:2] if _trains(place) == found.users["train"][0]]
    order = sorted(places[:2], key=lambda place: place not in first)
    put_together([*order, places[2]], tmp_path / "data" / "joint")
    keys = {key.replace("-", "_"): value for key, value in {**RUN, **TOGETHER}.items()}
    del keys["name"]
    joint = pfl.run(nodes=3, data_dir=str(tmp_path / "data" / "joint"), **keys)
    assert joint.trajectory is not None
    assert np.array_equal(found.trajectory, joint.trajectory)
    assert np.abs(found.trajectory[-1] - found.trajectory[0]).max() > 0.1
    for name in ("train", "tests", "theta", "rho", "alone"):
        assert found.users[name][:2].tolist() == joint.users[name][:2].tolist()


def _trains(place: Path) -> int:
    points = len((place / "points.csv").read_text().splitlines()) - 1
    return points - round(0.2 * points)
