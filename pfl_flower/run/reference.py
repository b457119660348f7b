"""The tables in the READMEs, written from the code: ``python -m pfl_flower.run.reference``.

A README says where a table goes; what stands between the marks is replaced:

    <!-- table: attack -->
    <!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pfl_flower.run.keys import Keys, kebab
from pfl_flower.run.tables import TABLES
from pfl_flower.support.console import say
from pfl_flower.support.extensions import Extension, Table
from pfl_flower.support.files import replace_file

PACKAGE = Path(__file__).parent.parent
READMES = tuple(PACKAGE / room / "README.md" for room in ("run", "attacks", "aggregation", "data"))
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Return a table in Markdown, with bars in cells escaped.

    >>> print(markdown(["R"], [["lam ||z||"]]))
    | R |
    |---|
    | lam \|\|z\|\| |
    """
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    for row in rows:
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


def keys() -> str:
    """Return the table of all keys of a run configuration."""
    rows = []
    for name, field in Keys.model_fields.items():
        rows.append([f"`{kebab(name)}`", f"`{_toml(field.default)}`", field.description or ""])
    return markdown(["key", "default", "meaning"], rows)


MORE: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "attack": ("knows", lambda row: ", ".join(row.knows)),
    "dataset": ("loss", lambda row: row.loss),
    "partition": ("keys", lambda row: ", ".join(f"`{key}`" for key in row.reads)),
    "aggregation": ("f of n users", lambda row: row.bound),
    "poisoning": ("for", lambda row: ", ".join(row.losses)),
}
"""A column that a point has besides those that all have."""


def members(table: Table[Any]) -> str:
    """Return the table of an extension point's members."""
    heading, more = MORE.get(table.point, ("", None))
    rows = []
    for name, row in table.items():
        extra = [more(row)] if more else []
        rows.append([f"`{name}`", row.text, *extra, _options(row), row.source])
    last = [heading] if more else []
    return markdown([f"`{table.point}`", "what it is", *last, "options", "source"], rows)


WRITERS: Mapping[str, Callable[[], str]] = {
    "keys": keys,
    **{table.point: partial(members, table) for table in TABLES},
}
"""What each mark stands for."""


def rewritten(text: str) -> str:
    """Return a README with its tables written anew.

    Raises
    ------
    KeyError
        If a mark names no table.
    """
    return BLOCK.sub(lambda found: f"{found[1]}{WRITERS[found[2]]()}\n{found[3]}", text)


def _options(row: Extension) -> str:
    fields = row.options.model_fields.items()
    return "; ".join(f"`{n}` ({_toml(field.default)}): {field.description}" for n, field in fields)


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


if __name__ == "__main__":
    for path in READMES:
        replace_file(path, rewritten(path.read_text()).encode())
        say(f"  {path}")
