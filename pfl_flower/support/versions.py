"""Which code made a result: the versions of what matters, and the commit of the source."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for package in ("pfl-flower", "flwr", "torch", "numpy", "ray"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def commit() -> str:
    """Return the source's git commit, ``-dirty`` if changed, ``unknown`` outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        answers = [
            subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "."])
        ]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answers[0] + ("-dirty" if answers[1] else "")
