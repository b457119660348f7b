"""Texts that strangers could send, and what has to be so wherever they are shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

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
    "formulas": r"$\bad{$ _x_ $\frac{1}$ \$ 50$",
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


def check_boundary(
    boundary: Callable[..., list[str]], kind: str, request: pytest.FixtureRequest
) -> None:
    """Send a text in at a boundary, which returns the lines where it came out, and check those."""
    asked = boundary.__code__.co_varnames[1 : boundary.__code__.co_argcount]
    shown = boundary(TEXTS[kind], **{name: request.getfixturevalue(name) for name in asked})
    assert shown
    for line in shown:
        check(line)


def by_name(*boundaries: Callable[..., list[str]]) -> dict[str, Callable[..., list[str]]]:
    return {boundary.__name__: boundary for boundary in boundaries}
