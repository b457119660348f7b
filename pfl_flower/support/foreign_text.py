"""Text that others wrote: names of files, what nodes and plug-ins say. It is shown, never obeyed.

A terminal obeys escape sequences, a reader believes a line of a log that begins with ``INFO``, and
a spreadsheet computes a cell that begins with ``=``. What comes from a node or out of a file goes
through here before it reaches a log, a message, a table or a page.
"""

from __future__ import annotations

LINE = 300
"""Characters of a line about something: enough for a path and a reason."""
LABEL = 150
"""Characters of a title or of a line's name in a figure."""
CUT = " [...] "
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""With what a cell begins that a spreadsheet computes; the last four are full-width forms."""
QUOTE = "'"
LONGEST_CELL = 30_000
"""Characters of a cell; spreadsheets take 32,767."""
MARGIN = 4
"""How many times the limit is looked at on either side of a text that is far too long."""


def one_line(text: object, limit: int = LINE) -> str:
    r"""Return a text as one line of at most ``limit`` characters that does nothing but show.

    Blanks and line ends become one blank, what cannot be printed is written as Python writes it,
    and too long a text loses its middle. An exception is its kind and what it says.

    >>> one_line("a\x1b[31m\nINFO: all is well")
    'a\\x1b[31m INFO: all is well'
    >>> one_line(ValueError("no"), limit=30), one_line("x" * 300_000, limit=20)
    ('ValueError: no', 'xxxxxxxxx [...] xxxx')
    """
    said = _said(text)
    if len(said) > 2 * MARGIN * limit:
        said = said[: MARGIN * limit] + CUT + said[-MARGIN * limit :]
    shown = legible(" ".join(said.split()))
    if len(shown) <= limit:
        return shown
    room = limit - len(CUT)
    end = room // 3
    return shown[: room - end] + CUT + shown[len(shown) - end :]


def legible(text: str) -> str:
    r"""Return a text of several lines in which every character shows; line ends and tabs stay.

    >>> legible("one\ntwo\x07 \u202eeerht")
    'one\ntwo\\x07 \\u202eeerht'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def cell(text: str) -> str:
    """Return a text as a cell of a CSV file: a quote keeps a spreadsheet from computing it.

    >>> cell("=1+1"), cell("no-reply:2"), from_cell(cell("=1+1"))
    ("'=1+1", 'no-reply:2', '=1+1')
    """
    shown = legible(text) if len(text) <= LONGEST_CELL else one_line(text, LONGEST_CELL)
    return QUOTE + shown if shown.startswith((QUOTE, *FORMULA)) else shown


def from_cell(cell: str) -> str:
    """Return the text of a cell."""
    return cell.removeprefix(QUOTE)


def in_figure(text: object, limit: int = LABEL) -> str:
    r"""Return a text for matplotlib: dollars begin no formula, and no line is left out of a legend.

    >>> in_figure("a $x$"), in_figure("_hidden")
    ('a \\$x\\$', ' _hidden')
    """
    shown = one_line(text, limit).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _said(text: object) -> str:
    try:
        said = str(text)
    except Exception:  # the text of somebody's exception is somebody's code
        return f"a {type(text).__name__} that cannot be shown"
    if isinstance(text, BaseException):
        return f"{type(text).__name__}: {said}" if said.strip() else type(text).__name__
    return said


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
