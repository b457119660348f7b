"""Every row of every table: what it names is there, and takes the options that it says."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from pfl_flower.run.config import parse_config
from pfl_flower.run.keys import Keys
from pfl_flower.run.tables import TABLES
from pfl_flower.support.extensions import Extension, Table

ROWS = [
    pytest.param(table, name, table[name], id=f"{table.point}-{name}")
    for table in TABLES
    for name in table
]


@pytest.mark.parametrize(("table", "name", "row"), ROWS)
def test_a_factory_takes_its_options_and_their_defaults(
    table: Table[Any], name: str, row: Extension
) -> None:
    parameters = inspect.signature(table.load(name.replace("PATH", "here"))).parameters
    for option, field in row.options.model_fields.items():
        assert parameters[option].default == field.default, option
        assert field.description
    placed = [one for one in parameters.values() if one.kind is not one.KEYWORD_ONLY]
    assert len(placed) >= len(table.passed)


@pytest.mark.parametrize(("table", "name", "row"), ROWS)
def test_what_a_row_reads_is_a_key(table: Table[Any], name: str, row: Extension) -> None:
    keys = parse_config({}).flat()
    assert set(row.reads) <= set(keys)
    assert row.text
    assert "\n" not in row.text
    told_by = getattr(row, "told_by", "")
    assert not told_by or told_by in keys


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.point)
def test_every_table_has_its_keys(table: Table[Any]) -> None:
    for key in (table.point, f"{table.point}_options"):
        assert key in Keys.model_fields
    described = Keys.model_fields[table.point].description or ""
    assert all(name in described for name in table)
