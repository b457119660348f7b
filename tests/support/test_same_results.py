"""The comparison of two records: what it calls the same, and what it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.running.parser import parser
from experiments.studies.catalogue import STUDIES
from pfl_flower.run.config import parse_config
from pfl_flower.run.presets import preset, preset_names
from tests.support.same_results.__main__ import judge, read_run
from tests.support.same_results.runs import all_items

OLD = {"trajectory": np.array([[0.0, 1.0]]), "metrics/x": np.array(np.nan)}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "identical"),
        ({"more": np.ones(1)}, "identical"),
        ({"trajectory": np.array([[0.0, 1.0 + 1e-12]])}, "close"),
        ({"trajectory": np.array([[0.0, 1.0 + 1e-6]])}, "different"),
        ({"trajectory": np.array([[0.0, np.nan]])}, "different"),
        ({"trajectory": np.zeros((2, 2))}, "different"),
        ({"metrics/x": np.array(1.0)}, "different"),
    ],
)
def test_what_is_the_same(change: dict[str, np.ndarray], verdict: str, tmp_path: Path) -> None:
    before, after = tmp_path / "before.npz", tmp_path / "after.npz"
    np.savez(before, **OLD)
    assert judge(before, after)[0] == "missing"
    np.savez(after, **{**OLD, **change})
    assert judge(before, after)[0] == verdict
    np.savez(after, metrics=np.zeros(1))
    assert judge(before, after)[0] == "missing"


def test_every_recorded_run_can_be_asked_for() -> None:
    items = all_items(list(STUDIES))
    assert len(items) > 120
    assert {f"preset-{name}" for name in preset_names()} | {f"study-{s}" for s in STUDIES} <= set(
        items
    )
    for name, commands in items.items():
        for words in commands:
            parsed = parser().parse_args([word.replace("{limit}", "/x") for word in words])
            keys = dict(pair.split("=", 1) for pair in parsed.settings)
            if not name.startswith("study-"):
                assert set(keys) <= set(parse_config(preset(parsed.name)).flat())


def test_a_folder_without_a_run_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty"):
        read_run(tmp_path)
