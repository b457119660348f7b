"""Fake studies, what they leave behind, and a reader of the page that shows it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from experiments.report.command import report
from experiments.studies.catalogue import STUDIES, Listed
from experiments.studies.standing import Printed
from experiments.studies.study import Result, Setting, Study
from pfl_flower.run.checks import Check, Claim, at_most
from pfl_flower.run.columns import Table
from pfl_flower.run.config import parse_config
from pfl_flower.run.results import summarise

HOSTILE = "<script>alert('x')</script> & \"|_*`"
VOID = {"br", "img", "meta"}


def measure(setting: Setting) -> dict[str, Any]:
    return {"metrics": {"accuracy": 0.8 + 0.01 * setting.seed, "gap": 1e-9}}


def broken(setting: Setting) -> dict[str, Any]:
    raise ValueError("first [line]\nsecond line")


SMALL = Claim("gap", at_most(1e-6))


def judge_badly(results: Sequence[Result]) -> list[Check]:
    return [Check("too much [to ask]", 0.5, ">= 0.9", False)]


def draw(results: Sequence[Result], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20), "red").save(folder / "picture.png")


def study(name: str, **changes: Any) -> Study:
    given: dict[str, Any] = {"measure": measure, "always": (SMALL,)}
    return Study(name=name, draw=draw, seeds=(1, 2), **{**given, **changes})


PRINTED = (
    Printed("accuracy of the idle", "accuracy", 0.8, "Table 1"),
    Printed("nothing of ours", "absent", 3.0, "Fig. 2"),
    Printed("a gap", "gap", 0.0, "Fig. 3"),
)
GOOD = study(
    "good",
    paper=PRINTED,
    setting="Two users.\n\n* one ``rho``\n* another",
    claim="Good is claimed.",
    words=lambda m: f"{m.mean('accuracy'):.0%} of the way, to {m.high('gap'):.0e}.",
)
PLAIN = study("plain")
FAILS = study("fails", judge=judge_badly)
BROKEN = study("broken", measure=broken)
NASTY = study(
    "nasty",
    setting=HOSTILE,
    paper=(Printed(HOSTILE, "a", 1, HOSTILE),),
    claim=HOSTILE,
    words=lambda m: f"{HOSTILE} {m.mean('*'):g}",
)
ABSENT = study(
    "absent",
    paper=PRINTED,
    success=(SMALL,),
    always=(),
    words=lambda m: f"{m.low('accuracy')}",
)
ALL = ("good", "plain", "fails", "nasty", "broken", "absent")


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the fake studies beside the real ones."""
    for name in ALL:
        title = HOSTILE if name == "nasty" else f"What {name} shows"
        listed = Listed(f"{__name__}:{name.upper()}", title)
        monkeypatch.setitem(STUDIES, name, listed)  # type: ignore[arg-type]


def quiet(width: int = 200) -> Console:
    return Console(width=width, record=True, file=io.StringIO())


def leave(
    output: Path,
    name: str,
    finals: Sequence[Mapping[str, float]] = ({"accuracy": 0.7}, {"accuracy": 0.8}),
    checks: Sequence[Check] = (Check("gap", 1e-9, "<= 1e-6", True),),
    picture: bool = True,
    **config: Any,
) -> dict[str, Any]:
    """Leave behind what a study would have."""
    asked = {"engine": "inprocess", "device": "auto", "rounds": None, "nodes": None}
    summary = summarise(
        experiment=name,
        config={**asked, "settings": {}, "quick": False, "control": False, **config},
        seeds=range(1, len(finals) + 1),
        finals=finals,
        checks=checks,
        device="cpu",
        seconds=3.25,
    )
    folder = output / name
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    if picture:
        draw((), folder)
    return summary


def leave_run(
    output: Path, name: str, finals: Sequence[Mapping[str, float]] = ({"x": 1.0},), **keys: Any
) -> None:
    """Leave behind what a run of one's own would have."""
    checks = [Check("finite", 1.0, "finite", True)]
    config = {**parse_config({}).flat(), "name": name, "seed": 7, "output-dir": "/x", **keys}
    summary = summarise(
        experiment=name,
        config=config,
        seeds=range(1, len(finals) + 1),
        finals=finals,
        checks=checks,
        device="cpu",
        seconds=2.0,
    )
    (output / name).mkdir(parents=True)
    (output / name / "summary.json").write_text(json.dumps(summary))


def leave_sweep(output: Path, name: str, cells: Sequence[Mapping[str, Any]], planned: int) -> None:
    """Leave behind what a sweep of one's own would have, but for the runs in its cells."""
    columns = dict.fromkeys(key for cell in cells for key in cell if key not in ("passed", "error"))
    table = Table.from_rows(cells, [*columns, "passed", "error"])
    (output / name).mkdir(parents=True)
    (output / name / "sweep.csv").write_text(table.to_csv())
    (output / name / "sweep.json").write_text(json.dumps({"cells": [{}] * planned}))


class Reader(HTMLParser):
    """Reads a page: what each element says, and whether every tag that opens is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        found = dict(attrs)
        if found.get("id"):
            assert found["id"] not in self.ids
            self.ids.add(str(found["id"]))
        if tag == "a":
            self.links.append(str(found["href"]))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def row(self, start: str) -> list[str]:
        """Return the last row, which is its own section's, that starts so."""
        return [row for row in self.rows if row[0].startswith(start)][-1]


VERDICT, CHECKS = 3, 5
"""Columns of the table of studies."""


def read(output: Path, names: Sequence[str] = ALL) -> tuple[Reader, list[list[str]]]:
    """Return the page, and the rows of the first Markdown table."""
    page, tables = report(output, names, quiet())
    return Reader(page.read_text()), markdown_tables(tables.read_text())[0]


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a text, each with its head and its line of dashes."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[line.split(" | ") for line in lines] for lines in blocks]
