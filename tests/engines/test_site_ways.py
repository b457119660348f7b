"""What the paper does not do, at a site on loopback: other ways to personalise, and backdoors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfl_flower as pfl
from experiments.deployment.loopback import Site, site
from experiments.deployment.machine import PATIENCE
from experiments.running.superlink import COMPLETED, run_status

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

NODES = {"alice": "honest", "bob": "honest", "eve": "strategic"}
RUN: dict[str, Any] = {
    "rounds": 2,
    "users": 3,
    "strategic-users": "2",
    "points-per-user": "40",
    "evaluate-every": 2,
    "save-trajectory": True,
}
NETWORK = {
    "model": "cnn",
    "model-options": '{"channels": 2}',
    "local-solver": "adam",
    "reduction": "mean",
}
RUNS: dict[str, dict[str, Any]] = {
    "classical": {"personalization": "classical", "max-gradient-norm": 500.0},
    "ditto": {"personalization": "ditto", "max-gradient-norm": 500.0},
    "local": {"personalization": "local"},
    "backdoor": {"attack": "backdoor", **NETWORK},
    "model-replacement": {"attack": "model-replacement", **NETWORK},
}
"""The run of ``test_site`` is joint."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site-ways")) as made:
        made.start_server()
        made.register(*NODES)
        for name, role in NODES.items():
            made.start_node(name, role)
        made.wait(lambda: made.online() == len(NODES), "the registered nodes")
        yield made


def carried(place: Site, name: str) -> Path:
    """Return the folder of a run on the site."""
    waits = {"node-timeout": PATIENCE, "reply-timeout": PATIENCE, "min-nodes": len(NODES)}
    place.run({**RUN, **RUNS[name], **waits, "name": name, "output-dir": place.folder / "out"})
    place.wait(lambda: place.ended("run"), "the end of the run", 4 * PATIENCE)
    said = place.log("run").rpartition("Using SuperLink")[2]
    place.wait(lambda: "running" not in run_status(said, place.environment), "its status")
    assert run_status(said, place.environment) == COMPLETED, said[-2000:]
    return place.folder / "out" / name


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_the_site_is_that_of_one_process(place: Site, name: str) -> None:
    folder = carried(place, name)
    found, said = pfl.load(folder), json.loads((folder / "summary.json").read_text())
    keys = {key.replace("-", "_"): value for key, value in {**RUN, **RUNS[name]}.items()}
    alone = pfl.run(nodes=len(NODES), **keys)
    assert isinstance(found, pfl.Result) and alone.trajectory is not None
    assert np.abs(found.trajectory - alone.trajectory).max() < 1e-9
    # Under local nothing moves rho; the personal models are what was learned.
    assert (np.abs(alone.trajectory[-1] - alone.trajectory[0]).max() > 1e-3) == (name != "local")
    assert said["passed"], said["checks"]
    # What nodes say of models that they keep is their word, and the same.
    assert "local_accuracy" in said["nodes_word"]
    measured = ["local_accuracy", *(one for one in found.metrics if one.startswith("triggered"))]
    for one in measured:
        assert found.metrics[one] == pytest.approx(alone.metrics[one], abs=1e-9)
    assert (len(measured) == 4) == ("attack" in RUNS[name])
