"""README's three lines in a stranger's app, as ``flwr run`` runs it on Ray, and in one process."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.examples.anyone import APP
from experiments.running.engines import run_status
from tests.support.readmes import ROOT
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
SERVER = """\
import json, sys, tomllib
from pathlib import Path
from fedavg_digits import client_app, server_app
from pfl_flower.transport.inprocess import run_in_process
given = tomllib.loads(Path(sys.argv[1], "pyproject.toml").read_text())
given = given["tool"]["flwr"]["app"]["config"]
given |= {"num-server-rounds": 3, "output": sys.argv[2]}
run_in_process(server_app.app, client_app.app, nodes=10, run_config=given)
"""


def with_our_lines(folder: Path) -> Path:
    """Return a copy of the app that has README's lines in the place of its choices."""
    app = shutil.copytree(APP, folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    for name, replaced in REPLACED.items():
        path = app / "fedavg_digits" / f"{name}.py"
        text = path.read_text()
        for theirs, ours in replaced.items():
            assert text.count(theirs) == 1
            text = text.replace(theirs, ours)
        path.write_text(text)
    (app / "fedavg_digits" / "choices.py").unlink()
    return app


@pytest.mark.slow
def test_the_recipe_runs_on_ray_as_in_process_whatever_the_actors(tmp_path: Path) -> None:
    app = with_our_lines(tmp_path)
    with private_superlink(tmp_path / "flwr") as environment:
        here = tmp_path / "here.json"
        path = f"{app}:{environment.get('PYTHONPATH', '')}"
        subprocess.run(
            [sys.executable, "-c", SERVER, str(app), str(here)],
            env={**environment, "PYTHONPATH": path},
            check=True,
            timeout=300,
        )
        right = json.loads(here.read_text())
        assert right["taken out"] == [1, 1, 1] and right["accuracy"][-1] > 0.6
        for cpus in (1, 2):
            output = tmp_path / f"ray-{cpus}.json"
            command = [
                *("flwr", "run", str(app), "--stream", "--run-config"),
                f"num-server-rounds=3 output='{output}'",
                *("--federation-config", f"num-supernodes=10 client-resources-num-cpus={cpus}"),
            ]
            ran = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=300, check=False
            )
            log = ran.stdout + ran.stderr
            assert run_status(log, environment) == "finished:completed", log[-3000:]
            found = json.loads(output.read_text())
            # Replies come in any order, and float32 sums have one: a digit or two change sides.
            np.testing.assert_allclose(found["accuracy"], right["accuracy"], atol=2.5 / 360)
            assert found["taken out"] == right["taken out"]
