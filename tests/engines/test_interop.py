"""README's three lines in two strangers' apps, as ``flwr run`` runs them on Ray, and in process."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.examples.anyone import APP
from experiments.running.engines import run_status
from tests.experiments import test_sgd_tabular as tabular
from tests.support.readmes import ROOT
from tests.support.strangers import Replaced, played, with_lines
from tests.support.superlink import private_superlink

README = (ROOT / "README.md").read_text()
IMPORT, MOD, STRATEGY = (
    line.partition("  #")[0].rstrip()
    for line in re.findall(r"```python recipe\n(.*?)```", README, re.S)[0].splitlines()
)
REPLACED = {
    "client_app": {
        "from fedavg_digits.choices import attack": IMPORT,
        "app = ClientApp(mods=[attack])": MOD,
    },
    "server_app": {
        "from fedavg_digits.choices import strategy": IMPORT
        + "\nfrom flwr.serverapp.strategy import FedAvg",
        "strategy(config)": STRATEGY.partition("= ")[2],
    },
}


DEALT = 'pfl.RobustFedAvg("bucketing", options={"then": "median"}, fraction_evaluate=0.0)'


@dataclass(frozen=True)
class App:
    """A stranger's app with lines of ours.

    ``sums``: how far accuracies may be apart, since replies come in any order, and sums have one.
    """

    folder: Path
    replaced: Replaced
    nodes: int
    sums: float
    taken_out: int


APPS = {
    "digits": App(APP, REPLACED, nodes=10, sums=2.5 / 360, taken_out=1),
    "tabular": App(
        tabular.APP,
        tabular.lines(tabular.MOD, tabular.STRATEGY),
        nodes=tabular.NODES,
        sums=1.5 / 119,
        taken_out=0,
    ),
    "tabular, checked": App(
        tabular.APP,
        tabular.lines(tabular.MOD, f"strategy = {tabular.ROWS[2][1]}"),
        nodes=tabular.NODES,
        sums=1.5 / 119,
        taken_out=1,
    ),
    # Nodes' ids are others in every run: the deals must not hang on them.
    "tabular, dealt in buckets": App(
        tabular.APP,
        tabular.lines(tabular.MOD, f"strategy = {DEALT}"),
        nodes=tabular.NODES,
        sums=1.5 / 119,
        taken_out=0,
    ),
}


def taken_out(written: Any) -> list[int]:
    """Return how many replies were taken out in each round, as either app writes it."""
    if "taken out" in written:
        return list(written["taken out"])
    return [one["taken-out"] for one in written["metrics"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", APPS)
def test_the_recipe_runs_on_ray_as_in_process_whatever_the_actors(
    tmp_path: Path, name: str
) -> None:
    one = APPS[name]
    app = with_lines(one.folder, tmp_path, one.replaced)
    (app / app.name / "choices.py").unlink(missing_ok=True)
    right = played(app, tmp_path / "here.json", nodes=one.nodes, **{"num-server-rounds": 3})
    assert taken_out(right) == [one.taken_out] * 3 and right["accuracy"][-1] > 0.6
    with private_superlink(tmp_path / "flwr") as environment:
        for cpus in (1, 2):
            output = tmp_path / f"ray-{cpus}.json"
            command = [
                *("flwr", "run", str(app), "--stream", "--run-config"),
                f"num-server-rounds=3 output='{output}'",
                "--federation-config",
                f"num-supernodes={one.nodes} client-resources-num-cpus={cpus}",
            ]
            ran = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=300, check=False
            )
            log = ran.stdout + ran.stderr
            assert run_status(log, environment) == "finished:completed", log[-3000:]
            found = json.loads(output.read_text())
            np.testing.assert_allclose(found["accuracy"], right["accuracy"], atol=one.sums)
            assert taken_out(found) == taken_out(right)
            if "model" in right:
                for layer, values in right["model"].items():
                    np.testing.assert_allclose(found["model"][layer], values, rtol=1e-9, atol=1e-12)
