"""A table by columns: what a run measured round by round, or a sweep cell by cell."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pfl_flower.support.foreign_text import cell as csv_cell
from pfl_flower.support.foreign_text import from_cell, one_line

Column = NDArray[Any]
SHOWN_ROWS = 12
"""Rows of a longer table that are printed: half from the top, half from the end."""


class Table:
    """Columns of one length, by name: arrays of numbers, or of text.

    Empty numbers are NaN, empty texts ``""``. Columns are the keys, ``len`` is the number of rows.

    Parameters
    ----------
    columns : mapping
        From names to values.

    Examples
    --------
    >>> table = Table({"round": [0, 1], "accuracy": [0.1, 0.9]})
    >>> table["accuracy"][-1], len(table), table.columns
    (np.float64(0.9), 2, ('round', 'accuracy'))
    >>> print(table)
    round  accuracy
        0       0.1
        1       0.9
    """

    def __init__(self, columns: Mapping[str, Iterable[Any]]) -> None:
        self._columns = {name: _column(list(values)) for name, values in columns.items()}
        lengths = {len(column) for column in self._columns.values()}
        if len(lengths) > 1:
            raise ValueError(f"columns of {sorted(lengths)} rows: expected one length")

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> Self:
        """Return the table of rows: with these columns, or with all in the order they come."""
        names = columns or list(dict.fromkeys(name for row in rows for name in row))
        return cls({name: [row.get(name) for row in rows] for name in names})

    @classmethod
    def from_csv(cls, text: str) -> Self:
        """Return the table of a CSV text with a header; columns without any entry are left out."""
        reader = csv.DictReader(io.StringIO(text, newline=""))
        names = {name: from_cell(name) for name in reader.fieldnames or ()}
        rows = [{names[name]: _value(cell) for name, cell in row.items() if cell} for row in reader]
        filled = {name for row in rows for name in row}
        return cls.from_rows(rows, [name for name in names.values() if name in filled])

    @property
    def columns(self) -> tuple[str, ...]:
        """The names."""
        return tuple(self._columns)

    def __getitem__(self, name: str) -> Column:
        """Return a column."""
        if name not in self._columns:
            raise KeyError(f"{name}: the columns are {', '.join(self._columns)}")
        return self._columns[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is such a column."""
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self._columns)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self._columns.values()), ()))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows as Python values, without what is empty."""
        listed = {name: column.tolist() for name, column in self._columns.items()}
        return [
            {name: values[i] for name, values in listed.items() if not _empty(values[i])}
            for i in range(len(self))
        ]

    def groups(self, names: Sequence[str]) -> list[tuple[dict[str, Any], list[int]]]:
        """Return each combination of values in these columns, and the numbers of its rows."""
        found: dict[tuple[Any, ...], list[int]] = {}
        listed = [self[name].tolist() for name in names]
        for i in range(len(self)):
            found.setdefault(tuple(column[i] for column in listed), []).append(i)
        return [(dict(zip(names, values, strict=True)), rows) for values, rows in found.items()]

    def to_csv(self) -> str:
        """Return the table as CSV: numbers to the last digit, empty cells for what is absent.

        A quote stands before text that a spreadsheet would compute; ``from_csv`` takes it away.
        """
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, self.columns, restval="", lineterminator="\n")
        writer.writerow({name: _written(name) for name in self.columns})
        for row in self.rows():
            writer.writerow({name: _written(value) for name, value in row.items()})
        return buffer.getvalue()

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame``.

        Raises
        ------
        ModuleNotFoundError
            If pandas is not installed: it is not among the requirements.
        """
        return import_module("pandas").DataFrame(self._columns)

    def __str__(self) -> str:
        """Return the table as it is printed: a long one without its middle."""
        lines = [self._heads(), *self._shown()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        left = [self[name].dtype == object for name in self.columns]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if text else cell.rjust(width)
                for cell, width, text in zip(line, widths, left, strict=True)
            ).rstrip()
            for line in lines
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""

        def line(cells: Iterable[str], tag: str) -> str:
            inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
            return f"<tr>{inner}</tr>"

        body = "".join(line(cells, "td") for cells in self._shown())
        return f"<table>{line(self._heads(), 'th')}{body}</table>"

    def _heads(self) -> list[str]:
        return [one_line(name) for name in self.columns]

    def _shown(self) -> list[list[str]]:
        rows = list(range(len(self)))
        half = SHOWN_ROWS // 2
        cut = len(rows) > SHOWN_ROWS
        chosen = [*rows[:half], *rows[-half:]] if cut else rows
        cells = [[_text(self[name][i]) for name in self.columns] for i in chosen]
        return [*cells[:half], ["..."] * len(self.columns), *cells[half:]] if cut else cells


def _column(values: list[Any]) -> Column:
    """Return an array of whole numbers, of numbers, or of objects."""
    given = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in given):
        return np.array(["" if v is None else v for v in values], dtype=object)
    if len(given) == len(values) and given and all(isinstance(v, bool | np.bool_) for v in given):
        return np.array(values, dtype=bool)
    if len(given) == len(values) and all(isinstance(v, int | np.integer) for v in given):
        return np.array(values, dtype=np.int64)
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _value(cell: str) -> bool | int | float | str:
    if cell in ("True", "False"):
        return cell == "True"
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return from_cell(cell)


def _written(value: Any) -> Any:
    return csv_cell(value) if isinstance(value, str) else value


def _empty(value: Any) -> bool:
    return value == "" or (isinstance(value, float) and value != value)


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "" if value != value else f"{value:.4g}"
    return one_line(value)
