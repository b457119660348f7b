"""The stranger's app on a table: README's lines in it, and what its README says they do."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from pfl_flower.interop.table import MOD_ATTACKS
from tests.support.readmes import ROOT
from tests.support.strangers import Replaced, played, with_lines

APP = ROOT / "experiments" / "examples" / "sgd_tabular"
README = (APP / "README.md").read_text()
IMPORT, MOD, STRATEGY = re.findall(r"```python recipe\n(.*?)```", README, re.S)[0].splitlines()
NODES = 5
THEIRS = "strategy = FedAvg(fraction_evaluate=0.0)"
ROWS = re.findall(r"^\| (nobody|one of five) \| `(.*)` \| (.*) \| (.*) \|$", README, re.M)
TARGET = {"target": {"0": [[0.0] * 30], "1": [3.0]}}
OTHERS = {"surrogates": [0, 1, 2, 3]}
GIVEN: dict[str, dict[str, Any]] = {
    "cga": TARGET,
    "model-replacement": {**TARGET, "weight": 0.2},
    "inner-product": OTHERS,
    "little-is-enough": OTHERS,
    "min-max": OTHERS,
    "honest": {"num_examples": 10**6},
}
TAKEN_OUT = {"nan": "taken-out-not-finite", "wrong-shape": "taken-out-layers"}


def lines(mod: str = "", strategy: str = "") -> Replaced:
    """Return what stands in the place of the app's own lines."""
    client = {"from flwr.app": f"{IMPORT}\nfrom flwr.app", "app = ClientApp()": mod}
    server = {"import json": f"{IMPORT}\nimport json", THEIRS: strategy}
    return {"client_app": client if mod else {}, "server_app": server if strategy else {}}


def test_the_app_knows_nothing_of_ours() -> None:
    for path in sorted((APP / "sgd_tabular").glob("*.py")):
        named = {
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [one.name for one in node.names]
            )
        }
        assert not {n for n in named if n.startswith(("pfl_flower", "experiments"))}
    assert "pfl" not in (APP / "pyproject.toml").read_text()


def shown(values: list[float]) -> tuple[float, float, float]:
    return fmean(values), min(values), max(values)


@pytest.mark.parametrize(("who", "strategy", "accuracy", "found"), ROWS)
def test_readmes_table(tmp_path: Path, who: str, strategy: str, accuracy: str, found: str) -> None:
    """As far as two of 119 tumours, and of the 40 malignant ones: a bit in a sum moves one."""
    mod = MOD if who == "one of five" else ""
    line = f"strategy = {strategy}"
    app = with_lines(APP, tmp_path, lines(mod, "" if line == THEIRS else line))
    runs = [played(app, tmp_path / "o.json", nodes=NODES, seed=seed) for seed in (1, 2, 3)]
    for name, text, slack in (("accuracy", accuracy, 2 / 119), ("malignant found", found, 2 / 40)):
        said = [float(number) for number in re.findall(r"[\d.]+", text)]
        np.testing.assert_allclose(shown([one[name][-1] for one in runs]), said, atol=slack + 0.005)


def test_the_table_says_what_the_three_lines_do() -> None:
    found = [float(row[3].split()[0]) for row in ROWS]
    assert len(ROWS) == 4 and found[1] == 0.0 and min(found[0], *found[2:]) > 0.85
    assert ROWS[3][1] == STRATEGY.partition("= ")[2]


@pytest.mark.parametrize("attack", MOD_ATTACKS)
def test_every_attack_goes_into_it(tmp_path: Path, attack: str) -> None:
    """Parameters without names, in float64: replies that count, but for those wrong in form."""
    given = GIVEN.get(attack, {})
    mod = f"app = ClientApp(mods=[pfl.attack_mod({attack!r}, **{given}, partitions=[4])])"
    checked = "strategy = pfl.Checked(FedAvg(fraction_evaluate=0.0))"
    app = with_lines(APP, tmp_path, lines(mod, checked))
    options: dict[str, Any] = {"nodes": NODES, "local-epochs": 1, "num-server-rounds": 2}
    found = played(app, tmp_path / "attacked.json", **options)
    honest = played(APP, tmp_path / "honest.json", **options)
    for metrics in found["metrics"]:
        counted = {name: n for name, n in metrics.items() if name.startswith("taken-out")}
        wanted = {"taken-out": 1, TAKEN_OUT[attack]: 1} if attack in TAKEN_OUT else {"taken-out": 0}
        assert counted == wanted
    assert found["model"] != honest["model"]
    assert np.isfinite(np.concatenate([np.ravel(one) for one in found["model"].values()])).all()
