"""Every command of every README, as it stands there, in a home of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.running.superlink import COMPLETED, run_status
from tests.support.readmes import ROOT, TYPED, Command
from tests.support.superlink import private_superlink
from tests.test_readme import BLOCKS

pytestmark = pytest.mark.slow


def typed(command: Command, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Type a command in the checkout, with this environment's programs before all others."""
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join([programs, environment["PATH"]])
    return subprocess.run(
        command.text,
        shell=True,
        cwd=ROOT,
        env={**environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.parametrize("file", sorted({command.file for command in TYPED}))
def test_commands_do_what_the_readme_says(file: str, tmp_path: Path) -> None:
    """In their order: a later one may read what an earlier one left."""
    for name, code in BLOCKS.items():
        (tmp_path / f"{name}.py").write_text(code)
    with private_superlink(tmp_path / "flwr") as environment:
        environment |= {"HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        for command in (one for one in TYPED if one.file == file):
            done = typed(command, environment)
            said = done.stdout + done.stderr
            assert done.returncode == 0, f"{command.text}\n{said[-3000:]}"
            assert "Traceback" not in said, f"{command.text}\n{said[-3000:]}"
            if re.match("flwr run", command.text):
                assert run_status(said, environment) == COMPLETED, said[-3000:]
