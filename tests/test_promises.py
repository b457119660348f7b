"""Each promise of SECURITY.md, and each attempt on a site, names a test: it is there, and whole."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pfl_flower.run.config import parse_config
from pfl_flower.run.presets import preset
from pfl_flower.run.problem import build_problem
from pfl_flower.run.step_sizes import server_step_sizes

ROOT = Path(__file__).parent.parent
SECURITY = ROOT / "SECURITY.md"
ATTEMPTS = ROOT / "experiments" / "deployment" / "ATTEMPTS.md"
LOCK = ROOT / "experiments" / "deployment" / "requirements.txt"
LEAST_ATTEMPTS = 40
NAMED = re.compile(r"`(?:(tests/\S+\.py)::)?(test_\w+)`")
BY_HAND = ("rehearsed", "by reading")


@cache
def names_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


@cache
def everywhere() -> frozenset[str]:
    return frozenset().union(*(names_in(path) for path in ROOT.glob("tests/**/test_*.py")))


def absent(text: str) -> list[str]:
    """Return the tests that a text names and that are not there."""
    return [
        f"{file}::{name}" if file else name
        for file, name in NAMED.findall(text)
        if name
        not in (
            everywhere() if not file else names_in(ROOT / file) if (ROOT / file).exists() else ()
        )
    ]


def table_rows(path: Path) -> list[list[str]]:
    """Return the cells of the rows of tables, without their heads."""
    lines = path.read_text().splitlines()
    heads = {at - 1 for at, line in enumerate(lines) if re.fullmatch(r"\|[-| ]+\|", line)}
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for at, line in enumerate(lines)
        if line.startswith("|") and at not in heads and at - 1 not in heads
    ]


@pytest.mark.parametrize("path", [SECURITY, ATTEMPTS], ids=lambda path: path.name)
def test_what_is_named_is_there(path: Path) -> None:
    assert len(NAMED.findall(path.read_text())) >= 20
    assert absent(path.read_text()) == []


def test_a_name_that_is_not_there_is_found() -> None:
    text = "`tests/test_promises.py::test_nothing` `test_nowhere` `tests/none.py::test_absent` "
    assert absent(text + "`tests/test_promises.py::test_what_is_named_is_there`") == [
        "tests/test_promises.py::test_nothing",
        "test_nowhere",
        "tests/none.py::test_absent",
    ]


@pytest.mark.parametrize("heading", ["What a site promises", "What each check stops"])
def test_every_promise_names_a_test(heading: str) -> None:
    section = SECURITY.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 8
    assert [row for row in rows if not NAMED.search(row.rsplit("|", 2)[1])] == []


def test_every_attempt_says_what_was_done_expected_and_seen_and_how_to_see_it_again() -> None:
    rows = table_rows(ATTEMPTS)
    assert len(rows) >= LEAST_ATTEMPTS
    numbers = [row[0] for row in rows]
    assert len(set(numbers)) == len(numbers)
    for row in rows:
        assert len(row) == 5 and all(row), row
        where = row[4]
        assert NAMED.search(where) or any(word in where for word in BY_HAND), row


def test_the_lock_is_what_the_project_asks_for() -> None:
    """Every direct requirement is pinned within its bounds, and everything has its hashes."""
    blocks = re.split(r"\n(?=\S)", LOCK.read_text())
    pins: dict[str, list[Version]] = {}
    for block in blocks:
        if block.startswith("#"):
            continue
        said = re.match(r"(\S+?)==(\S+)", block)
        assert said is not None and "--hash=sha256:" in block, block[:80]
        pins.setdefault(canonicalize_name(said[1]), []).append(Version(said[2]))
    assert len(pins) > 100
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        wanted = Requirement(line)
        found = pins[canonicalize_name(wanted.name)]
        assert found and all(version in wanted.specifier for version in found), line


@pytest.mark.parametrize("regularizer", ["l2", "smooth-l2"])
def test_the_bounds_in_numbers_are_the_presets(regularizer: str) -> None:
    config = parse_config(preset(f"digits-{regularizer}"))
    sizes = server_step_sizes(build_problem(config))
    etas = [sizes.at(round) for round in range(1, config.rounds + 1)]
    first, everything = config.lam * etas[0], config.lam * sum(etas)
    head = f"| {regularizer.replace('-', ' ')} | ball of radius lam |"
    (row,) = [line for line in SECURITY.read_text().splitlines() if line.startswith(head)]
    assert re.findall(r"= ([\d.]+)", row) == [f"{first:.3f}", f"{everything:.2f}"]
