"""READMEs: short, their links lead somewhere, their commands can be typed, their code runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import matplotlib
import pytest
import torch

from experiments.running.parser import parser
from experiments.studies.catalogue import STUDIES
from pfl_flower.run.problem import build_problem
from tests.support import readmes
from tests.support.readmes import ALL, ELSEWHERE, FILES, ROOT, TYPED, Command
from tests.support.runs import configure, play, trajectory

README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"```python (\w+)\n(.*?)```", README, flags=re.DOTALL))


def test_readme_is_read_in_one_go() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_are_there(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    for target in targets:
        assert "://" in target or (path.parent / target).exists(), target


def test_there_are_commands_to_type() -> None:
    assert len(TYPED) >= 20
    assert {command.file for command in TYPED} >= {"README.md", "pfl_flower/run/README.md"}
    assert set(ELSEWHERE) <= {command.file for command in ALL}
    set_up = [command.text for command in ALL if command.by_the_gate]
    assert set_up[-2:] == [
        "pip install -e . && FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 flwr run . --stream",
        'pip install -e ".[dev]" && pytest',
    ]
    gate = (ROOT / ".ci/run").read_text()
    assert """bash -c 'pip install --quiet -e ".[dev]" && pytest'\n""" in gate
    assert "flwr run . --stream" in gate


@pytest.mark.parametrize("command", ALL, ids=lambda command: f"{command.file}: {command.text}")
def test_our_commands_are_understood(command: Command) -> None:
    words = shlex.split(command.text)
    if words[:3] == ["python", "-m", "experiments"]:
        words = ["pfl-flower", *words[3:]]
    if words[0] == "pfl-flower" and "NAME" not in words:
        parsed = parser().parse_args(words[1:])
        assert parsed.command == words[1]


def test_the_reader_of_commands_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readmes, "ROOT", tmp_path)
    path = tmp_path / "README.md"
    path.write_text(
        "    pfl-flower list  # quick\n    flwr x   # hours, so not tested\n    rho = 1\n"
    )
    found = readmes.commands(path)
    assert [(one.text, one.excused) for one in found] == [
        ("pfl-flower list", False),
        ("flwr x", True),
    ]


def test_an_attacker_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_attack.py").write_text(BLOCKS["my_attack"])
    monkeypatch.syspath_prepend(str(tmp_path))
    own = play(configure(attack="my_attack:Opposite"))
    honest = play(configure(strategic_users="none"))
    assert not torch.equal(trajectory(own), trajectory(honest))
    assert torch.allclose(own[0].accepted[4], 2 * build_problem(configure()).target)
    assert all(not record.rejections for record in own)


def test_the_library_as_readme_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line by line as it stands, but for fewer points, rounds and seeds."""
    monkeypatch.setenv("HOME", str(tmp_path))
    matplotlib.use("agg")
    (code,) = re.findall(r"```python\n(import pfl_flower.*?)```", README, flags=re.DOTALL)
    for whole, less in (
        ("rounds=20, ", "rounds=2, points_per_user=60, "),
        ('"digits-l2", {"lam"', '"digits-l2", {"rounds": [2], "points-per-user": ["60"], "lam"'),
        ("range(5), jobs=2", "range(2), jobs=1"),
    ):
        assert whole in code
        code = code.replace(whole, less)
    names: dict[str, object] = {}
    exec(code, names)
    result, grid = names["result"], names["grid"]
    assert result.rho.shape == (650,)  # type: ignore[attr-defined]
    assert len(result.rounds["round"]) == 3  # type: ignore[attr-defined]
    assert len(grid.table()) == 6  # type: ignore[attr-defined]
    assert (tmp_path / "sweep").is_dir()


def test_the_number_of_studies_is_theirs() -> None:
    assert f"| {len(STUDIES)} studies |" in README
