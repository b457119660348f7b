"""What the rehearsal of kills rests on; the rehearsal itself is a command, outside the gate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from experiments.deployment.rehearsal import LIMIT, SETTLING, undisturbed
from experiments.running.engines import ROOT


def test_rho_has_a_limit_and_comes_six_times_closer_in_a_round(tmp_path: Path) -> None:
    """So that what kills have moved it by is gone after the undisturbed rounds at the end."""
    apart = undisturbed(tmp_path, 40)
    left = np.linalg.norm(apart - apart[-1], axis=1)
    assert left[0] > 1
    assert max(left[t + 1] / left[t] for t in range(1, 12)) < 1 / 6
    assert left[0] * (1 / 6) ** SETTLING < LIMIT / 10


def test_a_folder_that_is_there_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.deployment.rehearsal", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "does not exist yet" in done.stderr
    assert not list(tmp_path.iterdir())
