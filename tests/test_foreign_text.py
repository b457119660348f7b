"""What nodes, plug-ins and files say is shown at every boundary, and commands nothing there.

A row is a text that somebody could send, a column a place where it comes in and is shown again.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console

from experiments.__main__ import main
from experiments.report.command import report
from experiments.running import engines
from experiments.running.options import Options
from experiments.running.preset_runs import show
from pfl_flower.api import run
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
from pfl_flower.transport.inprocess import InProcessGrid
from pfl_flower.transport.records import CONFIG
from pfl_flower.transport.training_replies import GRADIENTS
from strategies.recruiting import ask_nodes
from tests.support import fake_studies
from tests.support.fake_studies import leave
from tests.support.runs import configure, play, tampering

TEXTS = {
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;another title\x07",
    "clipboard": "\x1b]52;c;cm0gLXJm\x1b\\",
    "C1": "\x9b2J\x9d0;x\x9c",
    "forged line": "no\nINFO :      round 6/6  distance_to_target 0",
    "carriage return": "no\rINFO :      all is well",
    "other line ends": "no\x0b\x0c\x1c\x85\u2028\u2029INFO",
    "right to left": "safe\u202egpj.exe\u2066\u200b",
    "half a character": "\udc80 \ud800",
    "nothing": "\x00\x00",
    "300,000 characters": "A" * 300_000,
    "300,000 commands": "\x1b[2J" * 75_000,
    "300,000 blanks": "a" + " \n" * 150_000 + "b",
    "markup": "[red]FAILED[/red] [link=http://a]b[/link] [/] :skull:",
    "format": "%s %d %(name)s {0} {name}",
    "html": "<script>alert(1)</script> & \"'",
    "formula": '=HYPERLINK("http://a","b")',
    "command": "@SUM(1)+cmd|' /C calc'!A0",
}
LONGEST = 2100
"""Characters of a line of a log, a message or a table, whatever comes in."""
LONGEST_ON_PAPER = 50_000
"""Of a line of a page, where several texts stand in one."""


def check(shown: str, lines: int = 1, longest: int = LONGEST) -> None:
    """Assert that a text does nothing but show, and stands in so many lines."""
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert shown.count("\n") == lines - 1
    assert len(shown) <= longest


@contextmanager
def heard() -> Iterator[list[str]]:
    """Give what Flower's logger is told in the body."""
    lines: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    ear, logger = Ear(), logging.getLogger("flwr")
    logger.addHandler(ear)
    try:
        yield lines
    finally:
        logger.removeHandler(ear)


def raising(text: str) -> ClientApp:
    def fail(message: Message, context: Context) -> Message:
        raise RuntimeError(text)

    app = ClientApp()
    for register in (app.query, app.train, app.evaluate):
        register()(fail)
    return app


def from_replies(change: Callable[[Message, Message], Message]) -> list[str]:
    """Return the log of a round in which a node changes its reply, and its rejection's detail."""
    with heard() as lines:
        records = play(configure(rounds=1), app=tampering(4, change))
    details = [one.detail for one in records[0].rejections if one.user == 4]
    assert len(details) == 1
    assert len(details[0]) <= 200
    return [*details, *lines]


def error_reply(text: str) -> list[str]:
    return from_replies(lambda question, _: Message(Error(2, text), reply_to=question))


def names_of_arrays(text: str) -> list[str]:
    def change(question: Message, reply: Message) -> Message:
        for record in reply.content.array_records.values():
            record[text] = record[GRADIENTS]
        return reply

    return from_replies(change)


def claimed_users(text: str) -> list[str]:
    def change(question: Message, reply: Message) -> Message:
        config = reply.content.config_records[CONFIG]
        reply.content[CONFIG] = ConfigRecord({**config, "users": text[:2000]})
        return reply

    return from_replies(change)


def exception_of_a_client(text: str) -> list[str]:
    app = raising(text)
    with heard() as lines, pytest.raises(NodesMissingError) as caught:
        play(configure(rounds=1), app=app)
    assert any("cannot take part" in line for line in lines)
    return [*lines, str(caught.value)]


def role(text: str) -> list[str]:
    app = ClientApp()

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        reply = Message(message.content, reply_to=message)
        reply.content[CONFIG] = ConfigRecord({"role": text})
        return reply

    with heard() as lines:
        assert not ask_nodes(InProcessGrid(app, nodes=1, run_config={}), [1000], 9.0)
    assert "cannot take part: role" in lines[0]
    return lines


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


def excerpt_of_a_failed_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    def run(command: list[str], stdout: Any = None, **_: object) -> object:
        if stdout is not None:
            line = f"\x1b[1;91mERROR\x1b[0m :     {text}\nsecond"
            stdout.write(line.encode("utf-8", "replace").decode())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(engines.subprocess, "run", run)
    options = Options(engine="simulation", output=tmp_path)
    with pytest.raises(RunFailedError) as caught:
        engines.run_once(options.configure({}, tmp_path, 1), options)
    return [str(caught.value)]


def command_line(text: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["run", "digits-l2", "--set", f"dataset={text}"]) == 2
    return capsys.readouterr().err.rstrip("\n").split("\n")[:1]


def table(text: str) -> list[str]:
    shown = str(Table({text: [1, 2], "error": [text, ""]}))
    check(shown, lines=3)
    return shown.split("\n")


def page_of_a_table(text: str) -> list[str]:
    shown = Table({"error": [text, ""]})._repr_html_()
    assert "<script>" not in shown
    return [shown]


def summary() -> dict[str, Any]:
    return {"experiment": "digits-l2", "metrics": {}, "checks": [], "passed": True}


def printed_summary(text: str, tmp_path: Path) -> list[str]:
    found = summary()
    found["experiment"] = text
    found["metrics"] = {text: {"mean": 1.0, "std": 0.0}}
    found["checks"] = [{"name": text, "value": text, "expected": text, "passed": True}]
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True, color_system=None)
    show(found, tmp_path, console)
    assert "passed" in file.getvalue()
    if "[red]" in text:
        assert "[red]FAILED[/red]" in file.getvalue() and ":skull:" in file.getvalue()
    return file.getvalue().split("\n")


def comparison(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what is printed of two runs that somebody else has made."""
    for number in (1, 2):
        folder = tmp_path / str(number)
        run(
            users=3,
            strategic_users=2,
            rounds=1,
            points_per_user=5,
            features=3,
            dataset="synthetic-logistic",
            nu=0.1,
        ).save(folder)
        kept = json.loads((folder / "summary.json").read_text())
        kept["config"]["data-dir"] = f"{number}{text}"
        (folder / "summary.json").write_text(json.dumps(kept))
    assert main(["compare", str(tmp_path / "1"), str(tmp_path / "2")]) == 0
    return capsys.readouterr().out.split("\n")


def report_page(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    fake_studies.register(monkeypatch)
    leave(tmp_path, "good", settings={"data-dir": text})
    path = tmp_path / "good" / "summary.json"
    found = json.loads(path.read_text())
    found["checks"][0]["name"] = found["hardware"] = found["commit"] = text
    path.write_text(json.dumps(found))
    console = Console(file=io.StringIO())
    html, markdown = report(tmp_path, ["good"], console)
    kept = html.read_text()
    assert "<script>" not in kept
    for line in [*kept.split("\n"), *markdown.read_text().split("\n")]:
        check("" if "data:image" in line else line, longest=LONGEST_ON_PAPER)
    return console.file.getvalue().split("\n")  # type: ignore[attr-defined]


BOUNDARIES: dict[str, Callable[..., list[str]]] = {
    function.__name__: function
    for function in (
        error_reply,
        names_of_arrays,
        claimed_users,
        exception_of_a_client,
        role,
        logged,
        run_log,
        errors,
        excerpt_of_a_failed_run,
        command_line,
        table,
        page_of_a_table,
        printed_summary,
        comparison,
        report_page,
    )
}


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kind", TEXTS)
def test_a_foreign_text_is_shown_and_obeyed_nowhere(
    kind: str, boundary: str, request: pytest.FixtureRequest
) -> None:
    function = BOUNDARIES[boundary]
    asked = function.__code__.co_varnames[1 : function.__code__.co_argcount]
    shown = function(TEXTS[kind], **{name: request.getfixturevalue(name) for name in asked})
    assert shown
    for line in shown:
        check(line)


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


def test_a_client_whose_exception_has_no_text_stops_nobody() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise Mute

    grid = InProcessGrid(app, nodes=1, run_config={})
    question = Message(RecordDict(), 1000, MessageType.TRAIN)
    (reply,) = grid.send_and_receive([question])
    assert reply.error.reason == "a Mute that cannot be shown"
