"""README's examples are run as they stand there."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from tests.support.runs import configure, play, trajectory

README = Path(__file__).parent.parent / "README.md"
BLOCKS = dict(re.findall(r"```python (\w+)\n(.*?)```", README.read_text(), flags=re.DOTALL))


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in BLOCKS.items():
        (tmp_path / f"{name}.py").write_text(code)
        sys.modules.pop(name, None)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()


def test_there_are_three_short_examples() -> None:
    assert set(BLOCKS) == {"my_attack", "my_regularizer", "my_aggregation"}
    assert all(len(code.splitlines()) <= 14 for code in BLOCKS.values())


def test_an_attacker_of_ones_own() -> None:
    own = play(configure(attack="my_attack:Opposite"))
    honest = play(configure(strategic_users="none"))
    assert not torch.equal(trajectory(own), trajectory(honest))
    first = own[0].accepted[4]
    from pfl_flower.run.problem import build_problem

    assert torch.allclose(first, 2 * build_problem(configure()).target)
    assert all(not record.rejections for record in own)


def test_a_regulariser_of_ones_own() -> None:
    from pfl_flower.run.problem import build_problem
    from pfl_flower.solvers.equilibrium import equilibrium

    config = configure(
        regularizer="my_regularizer:Quartic", server_lr=0.04, strategic_users="none", rounds=150
    )
    records = play(config)
    exact = equilibrium(build_problem(config).population(tuple(range(5))))
    assert exact.converged
    assert torch.linalg.vector_norm(records[-1].rho - exact.rho) < 1e-6
    assert all(record.metrics.unconverged == 0 for record in records)


def test_an_aggregation_rule_of_ones_own() -> None:
    records = play(configure(aggregation="my_aggregation:median", regularizer="l2"))
    rows = torch.stack([records[0].accepted[user] for user in range(5)])
    expected = -records[0].eta * 5 * rows.median(dim=0).values
    assert torch.allclose(records[0].rho, expected, rtol=1e-12)


def test_links_and_pictures_are_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    files = [target for target in targets if "://" not in target]
    assert len(files) >= 6
    for target in files:
        assert (README.parent / target).exists(), target
