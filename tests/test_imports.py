"""Dependencies point one way: experiments -> strategies, clients -> pfl_flower."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pfl_flower", "strategies", "clients", "experiments")
COMPOSITION_ROOT = {"pfl_flower/server_app.py", "pfl_flower/client_app.py"}
FLOWER_SIDE = {
    f"pfl_flower/{name}.py" for name in ("messages", "node_metrics", "wire", "inprocess")
}
KNOWS_FLOWER = COMPOSITION_ROOT | FLOWER_SIDE
FORBIDDEN = {
    "pfl_flower": {"strategies", "clients", "experiments", "tests"},
    "strategies": {"clients", "experiments", "tests"},
    "clients": {"strategies", "experiments", "tests"},
    "experiments": {"tests"},
}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_points_back(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    package = name.split("/")[0]
    names = imported(path)
    allowed = {"strategies", "clients"} if name in COMPOSITION_ROOT else set()
    assert not names & (FORBIDDEN[package] - allowed)
    if package == "pfl_flower" and name not in KNOWS_FLOWER:
        assert not names & {"flwr", "ray"}


def test_the_reader_of_imports_reads() -> None:
    assert {"flwr", "strategies", "clients", "pfl_flower"} <= imported(
        ROOT / "pfl_flower/server_app.py"
    ) | imported(ROOT / "pfl_flower/client_app.py")
