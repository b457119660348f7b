"""The gate: an installation that fails stops it, after one more try."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.readmes import ROOT

UPGRADE, INSTALL = "pip install --quiet --upgrade pip", "pip install --quiet -e .[dev]"
TWICE = [UPGRADE, INSTALL] * 2

# What stands for python3: "-m venv --clear FOLDER" puts two programs there that write down what
# they were asked; pip fails the installations whose numbers are in FAILS, and pytest fails always.
PYTHON = r"""#!/usr/bin/env bash
folder=${@: -1}
mkdir -p "$folder/bin"
cat >"$folder/bin/pip" <<'PIP'
#!/usr/bin/env bash
echo "pip $*" >>"$CALLS"
case $* in *dev*) ;; *) exit 0 ;; esac
case $FAILS in *$(grep -c dev "$CALLS")*) echo "no room" >&2 && exit 3 ;; esac
PIP
printf '#!/bin/sh\necho pytest >>"$CALLS"; exit 5\n' >"$folder/bin/pytest"
chmod +x "$folder/bin/"*
echo "PATH=$folder/bin:\$PATH" >"$folder/bin/activate"
"""


@pytest.mark.parametrize(
    ("fails", "calls", "status"),
    [
        ("", [UPGRADE, INSTALL, INSTALL, "pytest"], 5),
        ("1", [*TWICE, INSTALL, "pytest"], 5),
        ("12", TWICE, 3),
        ("2", [UPGRADE, INSTALL, INSTALL], 3),  # README's own command
    ],
)
def test_nothing_is_tested_with_half_an_installation(
    tmp_path: Path, fails: str, calls: list[str], status: int
) -> None:
    for name, text in {"python3": PYTHON, "nginx": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    ran = subprocess.run(
        [str(ROOT / ".ci/run")],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"),
            "FAILS": fails,
            "PFL_DATA_DIR": str(tmp_path),
            "TMPDIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (tmp_path / "calls").read_text().splitlines() == calls, ran
    assert ran.returncode == status
    again = "failed (status 3), and is tried again: environment"
    assert (again in ran.stderr) == fails.startswith("1")
    assert ("no room" in ran.stderr) == bool(fails)
