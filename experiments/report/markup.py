"""HTML that cannot be broken by what is put into it: plain text is escaped, markup is not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

VOID = frozenset({"br", "img", "meta"})


class Markup(str):
    """HTML already; every other string is text."""


def element(tag: str, *children: str, **attributes: str | int) -> Markup:
    """Return an element; a trailing underscore of an attribute's name is dropped, others are -.

    >>> element("p", "a < b", class_="x")
    '<p class="x">a &lt; b</p>'
    """
    names = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    opened = tag + "".join(f' {name}="{escape(str(value))}"' for name, value in names)
    if tag in VOID:
        return Markup(f"<{opened}>")
    return Markup(f"<{opened}>{join(children)}</{tag}>")


def join(parts: Iterable[str], between: str = "") -> Markup:
    """Return the parts one after another, escaped where they are text."""
    return Markup(between.join(p if isinstance(p, Markup) else escape(p) for p in parts))


def table(label: str, head: Iterable[str], rows: Iterable[str]) -> Markup:
    """Return a table that scrolls sideways by itself where the page is too narrow for it."""
    heads = element("tr", *(element("th", text, scope="col") for text in head))
    inner = element("table", element("thead", heads), element("tbody", *rows))
    return element("div", inner, class_="scroll", role="region", aria_label=label, tabindex=0)


def row(first: str, *cells: Markup) -> Markup:
    """Return a table row of cells, after what heads it."""
    ready = isinstance(first, Markup) and first.startswith(("<td", "<th"))
    return element("tr", first if ready else element("th", first, scope="row"), *cells)


def cell(label: str, *content: str, class_: str = "number") -> Markup:
    """Return a cell that says by itself which column it is of, for where there are no columns."""
    return element("td", *content, class_=class_, data_label=label)


def prose(text: str) -> Markup:
    r"""Return a docstring as paragraphs, lists and, where it is indented, preformatted blocks.

    >>> prose("One ``x``.\n\n* a\n* b")
    '<p>One <code>x</code>.</p><ul><li>a</li><li>b</li></ul>'
    """
    blocks = [block for block in re.split(r"\n\s*\n", text.strip("\n")) if block.strip()]
    return join(_block(block) for block in blocks)


def _block(block: str) -> Markup:
    lines = block.splitlines()
    if all(line.startswith("    ") for line in lines):
        return element("pre", "\n".join(line[4:] for line in lines))
    if re.match(r"[*-] ", block):
        items = re.split(r"^[*-] ", block, flags=re.MULTILINE)[1:]
        return element("ul", *(element("li", _inline(item)) for item in items))
    return element("p", _inline(block))


def _inline(text: str) -> Markup:
    parts = re.split(r"``(.+?)``", " ".join(text.split()))
    return join(element("code", part) if i % 2 else part for i, part in enumerate(parts))
