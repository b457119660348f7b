"""``pfl-flower`` does what ``python -m experiments`` does, whatever lies in the user's folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Return the script that an installer makes of pyproject's entry."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["pfl-flower"].partition(":")
    path = tmp_path / "bin" / "pfl-flower"
    path.parent.mkdir()
    path.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    return path


def run(path: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_folder_of_that_name_is_not_in_its_way(script: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    for name in ("experiments", "pfl_flower", "strategies", "clients"):
        (mine / name).mkdir(parents=True)
        (mine / name / "__init__.py").write_text("raise SystemExit('the wrong folder')\n")
    listed = run(script, mine, "list")
    assert listed.returncode == 0
    assert "presets: pfl-flower run NAME" in listed.stdout
    refused = run(script, mine, "run", "nope")
    assert refused.returncode == 2
    assert refused.stderr.startswith("NAME = nope: expected one of")
    # Two jobs: a process that is started there must not find these folders either.
    swept = run(
        script,
        mine,
        *("sweep", "digits-l2", "--over", "lam=0.1", "--jobs", "2", "--rounds", "1"),
        *("--output", "out", "--set", "dataset=synthetic-logistic", "points-per-user=20"),
    )
    assert swept.returncode == 0, swept.stderr
    assert len(list((mine / "out").glob("digits-l2-with-*-over-lam/sweep.png"))) == 1


def test_a_plug_in_beside_the_user_is_found(script: Path, tmp_path: Path) -> None:
    """Under a name that nothing of ours has; one that has is ours, as above."""
    (tmp_path / "my_rule.py").write_text("def double(rows):\n    return 2 * rows.sum(dim=0)\n")
    small = ("--rounds", "1", "--output", "out", "--set", "dataset=synthetic-logistic")
    own = run(script, tmp_path, "run", "digits-l2", *small, "aggregation=my_rule:double")
    assert own.returncode == 0, own.stderr
    absent = run(script, tmp_path, "run", "digits-l2", *small, "aggregation=my_rul:double")
    assert absent.returncode == 2
    assert absent.stderr.startswith("aggregation = my_rul:double: expected")


def test_python_with_the_package_says_how_it_was_called() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("usage: python -m experiments")
