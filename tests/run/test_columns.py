from __future__ import annotations

import numpy as np
import pytest

from pfl_flower.run.columns import Table
from pfl_flower.run.rounds import Rounds

ROWS = [
    {"round": 0, "norm": 0.1 + 0.2, "notices": None},
    {"round": 1, "norm": float("inf"), "notices": "absurd:1"},
]


def test_columns_are_of_numbers_or_of_text_and_empty_cells_are_nan() -> None:
    table = Table.from_rows([*ROWS, {"round": 2}])
    assert table["round"].dtype == np.int64
    assert table["notices"].tolist() == ["", "absurd:1", ""]
    assert np.isnan(table["norm"][2])
    assert (len(table), list(table), "norm" in table, "x" in table) == (
        3,
        ["round", "norm", "notices"],
        True,
        False,
    )
    with pytest.raises(KeyError, match="the columns are round, norm, notices"):
        _ = table["x"]
    with pytest.raises(ValueError, match="expected one length"):
        Table({"a": [1], "b": [1, 2]})


def test_csv_keeps_every_digit_and_leaves_out_what_is_always_empty() -> None:
    rounds = Rounds()
    for row in ROWS:
        rounds.write({"seed": 1, "round": row["round"], "norm_rho": row["norm"]})
    table = Table.from_csv(rounds.text)
    assert table.columns == ("seed", "round", "norm_rho")
    assert table["norm_rho"].tolist() == [0.1 + 0.2, float("inf")]
    assert Table.from_csv(table.to_csv()).rows() == table.rows()
    assert table.to_csv().splitlines()[1] == "1,0,0.30000000000000004"
    assert Table.from_csv("a,b\n").columns == ()


def test_a_long_table_is_printed_without_its_middle() -> None:
    table = Table({"round": range(100), "what": ["<b>"] * 100})
    lines = str(table).splitlines()
    assert len(lines) == 14
    assert lines[7].split() == ["...", "..."]
    assert lines[-1].split() == ["99", "<b>"]
    shown = table._repr_html_()
    assert "&lt;b&gt;" in shown and "<b>" not in shown
    assert len(str(Table({"round": range(12)})).splitlines()) == 13


def test_pandas_has_the_same_columns() -> None:
    pandas = pytest.importorskip("pandas")
    frame = Table.from_rows(ROWS).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["round", "norm", "notices"]
