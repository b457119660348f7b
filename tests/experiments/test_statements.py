"""The table of the paper's statements in ``theory/README.md``: whole, and true of what it names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from experiments.studies.catalogue import STUDIES

ROOT = Path(__file__).parents[2]
README = ROOT / "experiments" / "theory" / "README.md"
NUMBERED = {
    "Theorem": range(1, 10),
    "Lemma": range(1, 33),
    "Proposition": range(1, 4),
    "Corollary": range(1, 2),
    "Definition": range(1, 8),
    "Assumption": range(1, 2),
    "Table": range(1, 2),
    "Figure": [n for n in range(1, 20)],
    "Equation": range(1, 7),
}
"""What the paper numbers, counted in it; of equations those of its main part."""
VERDICTS = "holds", "sharpened", "differs", "contradicted", "not run yet"
ROW = re.compile(r"^\| ([A-Z]\w+ [A-Z0-9.]+) \| (.+) \| (`.+`) \| (.+) \|$")


class Row(NamedTuple):
    """A line of the table."""

    name: str
    says: str
    commands: tuple[str, ...]
    verdict: str


def rows() -> list[Row]:
    found = [match for line in README.read_text().splitlines() if (match := ROW.match(line))]
    return [Row(m[1], m[2], tuple(re.findall(r"`([^`]+)`", m[3])), m[4]) for m in found]


ROWS = rows()
NAMES = [row.name for row in ROWS]


@pytest.mark.parametrize("kind", NUMBERED)
def test_no_numbered_statement_is_missing(kind: str) -> None:
    wanted = {f"{kind} {number}" for number in NUMBERED[kind]}
    found = {name for name in NAMES if name.startswith(f"{kind} ")}
    assert wanted <= found
    if kind != "Equation":
        assert found <= wanted


def test_no_statement_stands_twice() -> None:
    assert len(set(NAMES)) == len(NAMES)


def test_every_equation_that_the_code_names_is_in_the_table() -> None:
    named = set()
    for room in ("pfl_flower", "experiments", "strategies", "clients"):
        for path in (ROOT / room).rglob("*.py"):
            named |= set(re.findall(r"\bEquation (\d+)", path.read_text()))
    assert named  # the search finds something at all
    assert {f"Equation {number}" for number in named} <= set(NAMES)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_a_row_names_exists(row: Row) -> None:
    assert row.commands
    assert row.verdict.split(":")[0].split(" of ")[0] in VERDICTS
    for command in row.commands:
        if command.startswith("pytest "):
            text = (ROOT / command.removeprefix("pytest ")).read_text()
            assert "def test_" in text
            if re.search(r"test_(convexity|proof)_lemmas", command):
                assert spoken_of(row.name, text), f"{command} does not speak of {row.name}"
        else:
            name = command.removeprefix("pfl-flower run ")
            assert name in STUDIES


def spoken_of(name: str, text: str) -> bool:
    """Whether a file's tests or words name a statement: ``test_lemmas_16_to_18``, "Lemma 16".

    >>> spoken_of("Lemma 17", "def test_lemmas_16_to_18_and_20_descent")
    True
    """
    kind, number = name.split()
    if kind == "Definition":  # what words mean: their use is the statements'
        return True
    words = re.findall(rf"\b{kind}s? ((?:\d+(?:, | and | to )?)+)", text)
    words += re.findall(rf"(?:test|and|of)_{kind.lower()}s?((?:_\d+|_and|_to)+)", text)
    spoken: set[int] = set()
    for part in words:
        spoken |= set(map(int, re.findall(r"\d+", part)))
        for low, high in re.findall(r"(\d+)(?: |_)to(?: |_)(\d+)", part):
            spoken |= set(range(int(low), int(high) + 1))
    return int(number) in spoken or (name == "Theorem 7" and "weyl" in text)


def test_verdicts_are_no_better_than_what_is_stored() -> None:
    """A statement is contradicted in the table if and only if a stored comparison of it is."""
    stored: dict[str, set[str]] = {}
    for path in (ROOT / "experiments" / "results").glob("*/summary.json"):
        for one in json.loads(path.read_text()).get("paper") or ():
            first = re.match(r"[A-Z]\w+ [A-Z0-9.]*\d", one["where"])
            if first:
                stored.setdefault(first[0], set()).add(one["standing"])
    for row in ROWS:
        contradicted = "contradicted" in stored.get(row.name, set())
        assert row.verdict.startswith("contradicted") == contradicted, row.name
        if row.verdict.startswith(("holds", "sharpened")):
            assert "differs" not in stored.get(row.name, set()), row.name
