"""Any text is one line that does nothing but show, and a cell that nothing computes."""

from __future__ import annotations

import csv
import io
import logging

import pytest

from pfl_flower.run.columns import Table
from pfl_flower.run.rounds import Rounds
from pfl_flower.support.console import logged_to
from pfl_flower.support.errors import ConfigError, DataError, NodesMissingError, RunFailedError
from pfl_flower.support.foreign_text import (
    FORMULA,
    LINE,
    LONGEST_CELL,
    cell,
    from_cell,
    legible,
    one_line,
)
from pfl_flower.transport.flower_internals import log
from tests.support.foreign_texts import (
    TEXTS,
    by_name,
    check_boundary,
    heard,
)


def logged(text: str) -> list[str]:
    with heard() as lines:
        log(logging.WARNING, "node %d: %s", 3, text)
        log(logging.WARNING, text)
    return lines


def run_log(text: str) -> list[str]:
    """Flower logs what it likes, and the file is read in a terminal: lines stand apart."""
    file = io.StringIO()
    with logged_to(file):
        logging.getLogger("flwr").warning("node 3: %s", text.replace("A", "")[:1000])
    first, *others = file.getvalue().rstrip("\n").split("\n")
    assert first.startswith("node 3: ")
    assert all(line.startswith("    ") for line in others)
    return [first, *others]


def errors(text: str) -> list[str]:
    kinds = (ConfigError, DataError, NodesMissingError, RunFailedError)
    return [str(kind(f"dataset = {text}: expected digits")) for kind in kinds]


BOUNDARIES = by_name(logged, run_log, errors)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kind", TEXTS)
def test_a_foreign_text_is_shown_and_obeyed_nowhere(
    kind: str, boundary: str, request: pytest.FixtureRequest
) -> None:
    check_boundary(BOUNDARIES[boundary], kind, request)


@pytest.mark.parametrize("kind", TEXTS)
def test_a_spreadsheet_computes_no_cell_and_reading_gives_the_text_back(kind: str) -> None:
    text = TEXTS[kind]
    rounds = Rounds()
    rounds.write({"round": 1, "notices": text})
    for written in (Table({"a": [-1.5, 2.0], "b": [text, ""], "=c": [1, 2]}).to_csv(), rounds.text):
        (row, *_) = csv.DictReader(io.StringIO(written, newline=""))
        cells = [value for value in row.values() if value]
        assert all(not c.startswith(FORMULA) for c in cells if c != "-1.5")
        assert all(c.isprintable() or c in "\n\t" for value in cells for c in value)
        assert not written.split("\n")[0].startswith(FORMULA) and ",=" not in written.split("\n")[0]
        kept = Table.from_csv(written)
        assert "=c" in kept or "notices" in kept
        whole = len(text) <= LONGEST_CELL
        expected = legible(text) if whole else one_line(text, LONGEST_CELL)
        assert kept["b" if "b" in kept else "notices"][0] == expected


@pytest.mark.parametrize("text", ["'", "''=", "-", "-1", "+x", "\t=1", "\uff1dA1", "plain", "a=b"])
def test_cells_can_be_read_back(text: str) -> None:
    assert from_cell(cell(text)) == text
    assert (cell(text) == text) == (text in ("plain", "a=b"))


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Named(Exception):
    pass


Named.__name__ = "\x1b[2JNamed"


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (None, "None"),
        (b"\x1b", "b'\\x1b'"),
        (ValueError(), "ValueError"),
        (ValueError(" \n"), "ValueError"),
        (ValueError("a\nb"), "ValueError: a b"),
        (Mute(), "a Mute that cannot be shown"),
        (Named("x"), "\\x1b[2JNamed: x"),
        ("  a \t b\u00a0c ", "a b c"),
        ("Łódź 東京 🙂", "Łódź 東京 🙂"),
    ],
)
def test_anything_is_one_line(thing: object, said: str) -> None:
    assert one_line(thing) == said


@pytest.mark.parametrize("length", [LINE - 1, LINE, LINE + 1, 8 * LINE, 8 * LINE + 1, 10**6])
def test_what_is_cut_keeps_both_ends_and_says_so(length: int) -> None:
    text = "b" + "x" * (length - 2) + "e"
    shown = one_line(text)
    assert (shown == text) == (length <= LINE)
    assert len(shown) == min(length, LINE)
    assert shown[0] + shown[-1] == "be"
    assert ("[...]" in shown) == (length > LINE)
