"""Tables of one's own: CSV, Parquet and JSON, a point in each row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pfl_flower.data.own.places import digest_of, place_of
from pfl_flower.data.own.points import SHOWN, Owners, OwnPoints, Raw, source_of
from pfl_flower.data.spec import DataSpec
from pfl_flower.support.errors import ConfigError, DataError
from pfl_flower.support.foreign_text import one_line

if TYPE_CHECKING:
    from pandas import DataFrame, Series

LINES = (".jsonl", ".ndjson")


def csv(spec: DataSpec, *, delimiter: str = ",") -> OwnPoints:
    """Return the points of a CSV file, whose first line names the columns."""
    import pandas

    # Arrow reads decimals to the last digit; the default does not in all versions of pandas.
    return _table(spec, lambda path: pandas.read_csv(path, sep=delimiter, engine="pyarrow"))


def parquet(spec: DataSpec) -> OwnPoints:
    """Return the points of a Parquet file, or of a folder of them."""
    import pandas

    return _table(spec, pandas.read_parquet)


def json(spec: DataSpec) -> OwnPoints:
    """Return the points of a JSON file: a list of objects, or one object a line (``.jsonl``)."""
    import pandas

    return _table(
        spec,
        lambda path: pandas.read_json(path, lines=path.suffix.lower() in LINES, precise_float=True),
    )


def _table(spec: DataSpec, read: Callable[[Path], DataFrame]) -> OwnPoints:
    return source_of(lambda one: _read(one, read), spec)


def _read(spec: DataSpec, read: Callable[[Path], DataFrame]) -> Raw:
    path = place_of(spec)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    key = digest_of(files, spec)
    try:
        frame = read(path)
    except (OSError, ValueError, TypeError, ImportError, OverflowError) as error:
        # Pandas' and Arrow's own errors are ValueErrors, or OSErrors.
        raise DataError(
            f"dataset = {spec.name}: {path} cannot be read ({one_line(error)})"
        ) from None
    return raw_table(frame, spec, key)


def raw_table(frame: DataFrame, spec: DataSpec, key: str) -> Raw:
    """Return the points of a table: a column of labels, perhaps one of users, the rest features.

    Raises
    ------
    ConfigError, DataError
        If a column is not there, is not of numbers, or a cell is empty: with its row, from 1.
    """
    where = f"dataset = {spec.name}"
    frame = frame.rename(columns=str)
    labels, owners = labels_and_owners(frame, spec)
    taken = [name for name in (spec.label_column, spec.user_column) if name]
    columns = tuple(name for name in frame.columns if name not in taken)
    if not columns:
        raise DataError(f"{where}: no column beside {', '.join(taken)}, expected features")
    features = np.column_stack([_feature(frame[name], where) for name in columns])
    return Raw(features=features, labels=labels, owners=owners, columns=columns, key=key)


def labels_and_owners(frame: DataFrame, spec: DataSpec) -> tuple[NDArray[Any], Owners]:
    """Return the labels of a table's rows, and whose they are if ``user-column`` says so.

    Raises
    ------
    ConfigError, DataError
        If a column is not there, or a cell of one is empty.
    """
    where = f"dataset = {spec.name}"
    if not len(frame):
        raise DataError(f"{where}: no rows, expected a point in each")
    _expect_column(frame, "label-column", spec.label_column)
    labels = _labels(frame[spec.label_column], where)
    if not spec.user_column:
        return labels, None
    _expect_column(frame, "user-column", spec.user_column)
    return labels, _owners(frame[spec.user_column], where)


def _expect_column(frame: DataFrame, key: str, name: str) -> None:
    if list(frame.columns).count(name) != 1:
        known = [one_line(column, 40) for column in frame.columns[:SHOWN]]
        more = ", ..." if len(frame.columns) > SHOWN else ""
        raise ConfigError(f"{key} = {name}: expected one of the columns {', '.join(known)}{more}")


def _feature(column: Series[Any], where: str) -> NDArray[np.float64]:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    _expect_values(column, where)
    if not (is_bool_dtype(column) or is_numeric_dtype(column)):
        raise DataError(
            f"{where}: column {one_line(column.name, 40)} has {_odd(column)}, expected numbers; "
            "take the column out, or write its values as numbers"
        )
    values = column.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        name = one_line(column.name, 40)
        raise DataError(f"{where}: column {name} has {values[row]} in row {row + 1:,}")
    return values


def _expect_values(column: Series[Any], where: str) -> None:
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        raise DataError(
            f"{where}: column {one_line(column.name, 40)} has no value in row "
            f"{int(missing[0]) + 1:,} ({len(missing):,} in all), expected one in every row"
        )


def _odd(column: Series[Any]) -> str:
    """Return the first value that is no number, and its row."""
    import pandas

    text = pandas.to_numeric(column.astype(str), errors="coerce").isna().to_numpy()
    row = int(np.argmax(text))  # row 0 where all look like numbers, and are text
    return f"{one_line(column.iloc[row], 40)!r} in row {row + 1:,}"


def _labels(column: Series[Any], where: str) -> NDArray[Any]:
    from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype

    _expect_values(column, where)
    if is_bool_dtype(column):
        return column.to_numpy(dtype=np.bool_)
    if is_integer_dtype(column):
        return column.to_numpy(dtype=np.int64)
    if is_float_dtype(column):
        return column.to_numpy(dtype=np.float64)
    return np.asarray([str(value) for value in column])


def _owners(column: Series[Any], where: str) -> Owners:
    from pandas.api.types import is_integer_dtype

    _expect_values(column, where)
    if is_integer_dtype(column):
        return [int(value) for value in column]
    return [str(value) for value in column]
