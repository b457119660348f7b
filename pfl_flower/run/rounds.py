"""The rounds of a run, row by row: in memory, and in ``rounds.csv`` as they go."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path

from pfl_flower.support.errors import DataError
from pfl_flower.support.files import replace_file
from pfl_flower.support.foreign_text import LONGEST_CELL, cell, from_cell

Row = Mapping[str, float | int | str | None]
"""What is said of a round; an entry that is None, or absent, is an empty cell."""
Numbers = list[dict[str, float]]
"""For each round its numbers; empty and textual cells are left out."""

Watch = Callable[[int, Mapping[str, float]], object]
"""Follows a run: is told the number of each finished round and what was measured of rho."""

ROUNDS_FILE = "rounds.csv"
COLUMNS = (
    "seed",
    "round",
    "eta",
    "accuracy_true",
    "accuracy_target",
    "target_accuracy",
    "loss_true",
    "distance_to_target",
    "distance_to_rival",
    "distance_to_start",
    "distance_to_honest",
    "norm_rho",
    "step_norm",
    "gradient_norm",
    "honest_gradient_norm",
    "strategic_gradient_norm",
    "accepted",
    "rejections",
    "honest_reports",
    "honest_missing",
    "honest_unheard",
    "rejection_reasons",
    "notices",
    "worst_residual",
    "unconverged",
    "local_accuracy",
    "active_accuracy",
    "idle_accuracy",
    "poisoned_points",
    "poisoned_labels",
    "poisoned_residual",
    "seconds",
)

TEXTS = frozenset({"rejection_reasons", "notices"})
"""Columns of words; all others are of numbers."""
LONGEST_ROW = 8 * LONGEST_CELL
"""Bytes of a row: two cells of words, a character of which takes four at most, and numbers."""


def unwatched(round: int, measured: Mapping[str, float]) -> None:
    """Follow nothing."""


class Rounds:
    """What a run measures of its rounds.

    Parameters
    ----------
    folder : Path or None
        Where ``rounds.csv`` grows by one flushed line per round, so that a stopped run keeps what
        it measured. None for a run that writes nothing.
    kept : str
        The text of the rounds so far, with which a run that is resumed begins.
    more : sequence of str
        Columns that this run has besides ``COLUMNS``.
    """

    def __init__(
        self, folder: Path | None = None, kept: str = "", more: Sequence[str] = ()
    ) -> None:
        self._columns = all_columns(more)
        self._lines = [kept or _heading(self._columns)]
        self._file: FileIO | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / ROUNDS_FILE
            if kept:
                replace_file(path, kept, durable=True)
            self._file = FileIO(path, "a" if kept else "w")
            if not kept:
                self._to_file(self._lines[0])

    def write(self, row: Row) -> None:
        """Append a row; absent columns stay empty."""
        line = _line({key: _cell(value) for key, value in row.items()}, self._columns)
        self._lines.append(line)
        self._to_file(line)

    @property
    def text(self) -> str:
        """What ``rounds.csv`` says so far."""
        return "".join(self._lines)

    def since(self, entry: int) -> str:
        """Return what it says after so many entries, of which ``len`` are there now."""
        return "".join(self._lines[entry:])

    def __len__(self) -> int:
        """Return the number of entries: lines, or several at once where a run was resumed."""
        return len(self._lines)

    @property
    def numbers(self) -> Numbers:
        """The rows so far, to the digit what ``read_rounds`` finds in the file."""
        return numbers(self.text)

    def close(self) -> None:
        """Close the file; what is in memory stays."""
        if self._file is not None:
            self._file.close()

    def _to_file(self, line: str) -> None:
        if self._file is None:
            return
        rest, before = memoryview(line.encode()), os.fstat(self._file.fileno()).st_size
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException:
            # A full disk may have taken half of it: the file ends with its last whole line.
            self._file.truncate(before)
            raise


def all_columns(more: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the columns of a run that has these besides ``COLUMNS``."""
    return (*COLUMNS, *more)


def check_text(text: str, columns: Sequence[str], *, seed: int, last: int) -> None:
    """Check that a text can be what ``rounds.csv`` said after round ``last``, whoever wrote it.

    Raises
    ------
    DataError
        If it has other columns or rows, or a cell that is never written.
    """
    try:
        head, *rows = list(csv.reader(io.StringIO(text, newline="")))
    except (csv.Error, ValueError) as error:
        raise DataError(f"no table: {error}") from None
    if head != list(columns):
        raise DataError("other columns than this run's")
    if len(rows) != last + 1:
        raise DataError(f"{len(rows)} rows: expected {last + 1}")
    lines = [_line(dict(zip(columns, row, strict=False)), columns) for row in [head, *rows]]
    if "".join(lines) != text:
        raise DataError("a row that is not written so")
    for number, row in enumerate(rows):
        if row[:2] != [str(seed), str(number)]:
            raise DataError(f"row {number} is of seed {row[0]}, round {row[1]}")
        for name, found in zip(columns, row, strict=True):
            right = cell(from_cell(found)) == found if name in TEXTS else _is_number(found)
            if found and not right:
                raise DataError(f"round {number}, {name}: {found}")


def write_together(path: Path, parts: Iterable[Path]) -> None:
    """Write the rows of several ``rounds.csv``, which their seed column tells apart, in one."""
    rows, columns = [], dict.fromkeys(COLUMNS)
    for part in parts:
        with part.open(newline="") as file:
            reader = csv.DictReader(file)
            rows += list(reader)
            columns |= dict.fromkeys(reader.fieldnames or ())
    lines = [_line(row, tuple(columns)) for row in rows]
    replace_file(path, _heading(tuple(columns)) + "".join(lines))


def read_rounds(path: Path) -> Numbers:
    """Return the rows of ``rounds.csv`` as numbers.

    Raises
    ------
    DataError
        If a row has more cells than there are columns.
    """
    with path.open(newline="") as file:
        return _numbers(file)


def numbers(text: str) -> Numbers:
    """Return the rows of what ``rounds.csv`` says as numbers."""
    return _numbers(io.StringIO(text, newline=""))


def _numbers(lines: Iterable[str]) -> Numbers:
    rows = list(csv.DictReader(lines))
    # The reader keeps the cells for which there is no column under None.
    if any(None in row for row in rows):
        raise DataError(
            f"{ROUNDS_FILE}: expected at most as many cells in a row as columns; did two runs "
            "write to one folder?"
        )
    return [{key: float(cell) for key, cell in row.items() if _is_number(cell)} for row in rows]


def _heading(columns: Sequence[str]) -> str:
    return _line({name: name for name in columns}, columns)


def _line(cells: Mapping[str, str], columns: Sequence[str]) -> str:
    buffer = io.StringIO(newline="")
    csv.DictWriter(buffer, columns, restval="").writerow(cells)
    return buffer.getvalue()


def _cell(value: float | int | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return cell(value)
    return repr(value) if isinstance(value, float) else str(value)


def _is_number(cell: str | None) -> bool:
    try:
        float(cell or "")
    except ValueError:
        return False
    return True
