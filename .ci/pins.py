"""Which versions the gate tries besides the newest: ``oldest`` or ``oldest-flower``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
MATHEMATICS = {"numpy", "scipy", "scikit-learn", "llvmlite"}
MATHEMATICS |= {"matplotlib", "pydantic", "rich", "jinja2"}
"""What the mathematics needs, but for torch, which is several GB."""
TABLES = {"pandas", "pyarrow", "datasets", "flwr-datasets"}
"""What reads data of one's own; their versions go together, and with NumPy's."""


def lowest() -> dict[str, str]:
    """Return the lowest versions of direct requirements that can be installed together, by name."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--python-version", python]
    command += ["--resolution", "lowest-direct", "--no-annotate", "--no-header", str(PYPROJECT)]
    text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    pins = [line.partition("==") for line in text.splitlines() if "==" in line]
    return {name: f"{name}=={version}" for name, _, version in pins}


def wanted(which: str) -> list[str]:
    """Return what pip is to install.

    Raises
    ------
    KeyError
        If a package has no lower bound, or nobody asks for ``which``.
    """
    names = {"oldest": MATHEMATICS | TABLES, "oldest-flower": {"flwr"}}[which]
    pins = lowest()
    return [pins[name] for name in sorted(names)]


if __name__ == "__main__":
    print(*wanted(sys.argv[1]))
