"""The study of attacks against aggregation rules."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments.defences import study
from experiments.defences.presentation import draw, means
from experiments.defences.study import ATTACKS, BASE, DEFENCES, STUDY, metrics
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.attacks.table import ATTACKS as EVERY_ATTACK
from pfl_flower.run.config import parse_config
from tests.support.studies import run_quick


def cell(accuracy: float, share: float) -> dict[str, float]:
    return {
        "accuracy": accuracy,
        "share": share,
        "way": 10.0,
        "distance_to_target": 10 * abs(1 - share),
    }


def made_up() -> dict[str, Any]:
    """Return cells in which everything is as the study claims."""
    calm = {"sum": cell(0.96, 0.0), "Krum": cell(0.95, 0.01)}
    cells = {
        "squared-l2": {
            "none": dict(calm),
            "CGA": {"sum": cell(0.01, 1.0), "Krum": cell(0.94, 0.03)},
            "min-max": dict(calm),
        },
        "l2": {"none": dict(calm), "CGA": dict(calm), "min-max": dict(calm)},
    }
    return copy.deepcopy(cells)


def judged(cells: dict[str, Any]) -> set[str]:
    """Return the names of the checks that fail."""
    result = {"cells": cells, "metrics": metrics(cells)}
    return {check.name for check in STUDY.checks([result]) if not check.passed}


def test_every_attack_and_every_rule_is_in_the_table() -> None:
    attacks = {keys.get("attack") for name, keys in ATTACKS.items() if name != "none"}
    # Poisoned data hold the model of the model attack, and cost a linear programme a cell.
    assert attacks == set(EVERY_ATTACK) - {"data"}
    assert {keys["aggregation"] for keys in DEFENCES.values()} == set(AGGREGATIONS)
    for attack in ATTACKS.values():
        for defence in DEFENCES.values():
            parse_config({**BASE, **attack, **defence})


def test_what_is_claimed_passes_as_claimed() -> None:
    assert judged(made_up()) == set()


@pytest.mark.parametrize(
    ("where", "value", "failing"),
    [
        (("squared-l2", "CGA", "sum"), cell(0.01, 0.9), "squared-l2, sum: CGA reaches"),
        (("squared-l2", "CGA", "sum"), cell(0.3, 1.0), "squared-l2, sum: some attack ruins"),
        (("squared-l2", "none", "Krum"), cell(0.90, 0.0), "squared-l2, Krum: costs little"),
        (("squared-l2", "CGA", "Krum"), cell(0.94, 0.4), "squared-l2, Krum: CGA is far"),
        (("squared-l2", "min-max", "Krum"), cell(0.7, 0.0), "squared-l2, Krum: no attack ruins"),
        (("l2", "min-max", "sum"), cell(0.7, 0.0), "l2, sum: no attack ruins"),
        (("l2", "CGA", "sum"), cell(0.95, 0.4), "l2, sum: CGA is far"),
        (("l2", "CGA", "Krum"), cell(float("nan"), float("nan")), "l2, Krum: CGA is far"),
    ],
)
def test_each_claim_can_fail(
    where: tuple[str, str, str], value: dict[str, float], failing: str
) -> None:
    cells = made_up()
    regularizer, attack, defence = where
    cells[regularizer][attack][defence] = value
    assert any(name.startswith(failing) for name in judged(cells))


def test_no_check_compares_a_cell_with_itself() -> None:
    """Each fails for some value of some one cell: of the sum without an attack too."""
    cells = made_up()
    sound = {c.name for c in STUDY.checks([{"cells": cells, "metrics": metrics(cells)}])}
    assert {f"{regularizer}, sum: learns without attack" for regularizer in cells} <= sound
    for regularizer, attacks in cells.items():
        for attack, row in attacks.items():
            for defence in row:
                for value in (cell(0.0, 0.0), cell(0.5, 0.5), cell(1.0, 1.0)):
                    other = made_up()
                    other[regularizer][attack][defence] = value
                    sound -= judged(other)
    assert not sound


def test_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worse = made_up()
    worse["squared-l2"]["CGA"]["sum"]["accuracy"] = 0.03
    results = [{"cells": made_up()}, {"cells": worse}]
    assert means(results, "accuracy")["squared-l2"][2][1, 0] == pytest.approx(0.02)
    draw(results, tmp_path)
    for name in ("defences", "defences-way"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 300
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    written = (tmp_path / "defences.md").read_text()
    assert "| CGA | 0.02 (1.00) | 0.94 (0.03) |" in written
    assert written.count("| none |") == 2
    assert "0.94 (0.03)" in capsys.readouterr().out


@pytest.mark.slow
def test_the_quick_form_passes_and_fails_with_nobody_attacking(tmp_path: Path) -> None:
    summary = run_quick(STUDY, tmp_path)
    assert summary["passed"], [check for check in summary["checks"] if not check["passed"]]
    read = json.loads((tmp_path / "defences/seed-1/result.json").read_text())
    assert list(read["cells"]) == list(study.QUICK_REGULARIZERS)
    assert run_quick(STUDY, tmp_path, control=True)["passed"]
