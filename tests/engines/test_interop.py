"""A stranger's app with an attacking mod, as ``flwr run`` runs it on Ray."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.examples.anyone import APP, strangers_app
from experiments.running.engines import run_status
from pfl_flower.transport.inprocess import run_in_process
from tests.support.superlink import private_superlink

CHOSEN: dict[str, Any] = {"strategy": "checked-fedavg", "num-server-rounds": 3}


def in_process(attack: str, folder: Path) -> dict[str, Any]:
    output = folder / "here.json"
    with strangers_app() as (server, client, config):
        config |= {**CHOSEN, "attack": attack, "output": str(output)}
        run_in_process(server, client, nodes=10, run_config=config)
    found: dict[str, Any] = json.loads(output.read_text())
    return found


@pytest.mark.slow
def test_the_app_runs_on_ray_as_in_process_whatever_the_actors(tmp_path: Path) -> None:
    here = in_process("nan", tmp_path)
    assert here["taken out"] == [1, 1, 1]
    with private_superlink(tmp_path / "flwr") as environment:
        for cpus in (1, 2):
            output = tmp_path / f"ray-{cpus}.json"
            keys = {**CHOSEN, "attack": "nan", "output": str(output)}
            words = (f"{key}={json.dumps(value)}" for key, value in keys.items())
            command = [
                *("flwr", "run", str(APP), "--stream", "--run-config", " ".join(words)),
                "--federation-config",
                f"num-supernodes=10 client-resources-num-cpus={cpus}",
            ]
            ran = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=300, check=False
            )
            log = ran.stdout + ran.stderr
            assert run_status(log, environment) == "finished:completed", log[-3000:]
            found = json.loads(output.read_text())
            # Replies come in any order, and float32 sums have one: a digit or two change sides.
            np.testing.assert_allclose(found["accuracy"], here["accuracy"], atol=2.5 / 360)
            assert found["taken out"] == here["taken out"]
