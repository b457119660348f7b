"""Dependencies point one way: between packages, between the rooms of ``pfl_flower``; no circle."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pfl_flower", "strategies", "clients", "experiments")
COMPOSITION_ROOT = {
    "pfl_flower.server_app",
    "pfl_flower.client_app",
    "pfl_flower.api",
}
ROOMS = (
    "interop",
    "transport",
    "run",
    "attacks",
    "aggregation",
    "data",
    "solvers",
    "objective",
    "support",
)
"""From the top down: a module imports from its own room and from those after it."""
BELOW = {
    "pfl_flower": {"pfl_flower"},
    "strategies": {"strategies", "pfl_flower"},
    "clients": {"clients", "pfl_flower"},
    "experiments": set(PACKAGES),
}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    dotted(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever it stands, also for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import hides where it leads"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return found


GRAPH = {name: imported(path) for name, path in MODULES.items()}


def room(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "pfl_flower" and len(parts) > 1 and parts[1] in ROOMS else None


def fault(importer: str, target: str) -> str | None:
    """Why a module must not import another one of ours, None if it may."""
    package, other = importer.split(".")[0], target.split(".")[0]
    if other not in (*PACKAGES, "tests"):
        return None
    root = {*COMPOSITION_ROOT, "pfl_flower"}
    if target in COMPOSITION_ROOT and package != "experiments" and importer not in root:
        return "only engines, experiments and tests import the composition root"
    allowed = BELOW[package] | (
        {"strategies", "clients"} if importer in COMPOSITION_ROOT else set()
    )
    if other not in allowed:
        return f"{package} may import {', '.join(sorted(allowed))}"
    here, there = room(importer), room(target)
    if here and there and ROOMS.index(here) > ROOMS.index(there):
        return f"{there} is above {here}"
    return None


@pytest.mark.parametrize("name", MODULES)
def test_no_import_points_back(name: str) -> None:
    faults = {target: why for target in GRAPH[name] if (why := fault(name, target))}
    assert not faults
    if name.startswith("pfl_flower") and name not in COMPOSITION_ROOT:
        if room(name) not in {"interop", "transport"}:
            assert not {target.split(".")[0] for target in GRAPH[name]} & {"flwr", "ray"}


def test_no_import_goes_in_a_circle() -> None:
    ours = {name: targets & MODULES.keys() for name, targets in GRAPH.items()}
    list(graphlib.TopologicalSorter(ours).static_order())


def test_every_module_of_the_library_has_a_room() -> None:
    lost = {n for n in MODULES if n.startswith("pfl_flower.") and room(n) is None}
    assert lost <= COMPOSITION_ROOT


@pytest.mark.parametrize(
    ("importer", "target", "wrong"),
    [
        ("pfl_flower.data.sources", "pfl_flower.run.config", True),
        ("pfl_flower.run.config", "pfl_flower.data.sources", False),
        ("pfl_flower.run.config", "strategies.roster", True),
        ("pfl_flower.run.config", "tests.support.runs", True),
        ("pfl_flower.server_app", "strategies.roster", False),
        ("pfl_flower.api", "pfl_flower.server_app", False),
        ("pfl_flower.run.config", "pfl_flower.api", True),
        ("clients.base", "strategies.roster", True),
        ("strategies.roster", "pfl_flower.server_app", True),
        ("experiments.running.engines", "pfl_flower.server_app", False),
    ],
)
def test_the_arrows_that_are_faults(importer: str, target: str, wrong: bool) -> None:
    assert (fault(importer, target) is not None) == wrong


def test_the_reader_of_imports_reads() -> None:
    assert {"flwr.serverapp", "strategies.parameter_server"} <= GRAPH["pfl_flower.server_app"]
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())


def test_no_module_is_left_out_of_flowers_bundle() -> None:
    """Flower drops ``test_*.py`` and ``*_test.py`` from what it sends to the nodes."""
    names = [path.name for path in MODULES.values()]
    assert not [n for n in names if n.startswith("test_") or n.endswith("_test.py")]
