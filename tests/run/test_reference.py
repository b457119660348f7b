"""READMEs repeat what the code says of its keys and tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfl_flower.run.keys import Keys, kebab
from pfl_flower.run.reference import BLOCK, READMES, WRITERS, rewritten
from pfl_flower.run.tables import TABLES


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_tables_stand_as_the_code_writes_them(path: Path) -> None:
    text = path.read_text()
    assert text == rewritten(text), f"python -m {rewritten.__module__} writes them anew"


def test_every_table_stands_in_one_readme() -> None:
    found = [mark for path in READMES for _, mark, _ in BLOCK.findall(path.read_text())]
    assert sorted(found) == sorted(WRITERS)


def test_tables_name_every_key_and_member() -> None:
    keys = WRITERS["keys"]()
    assert all(f"| `{kebab(name)}` |" in keys for name in Keys.model_fields)
    for table in TABLES:
        written = WRITERS[table.point]()
        for name, row in table.items():
            assert f"| `{name}` |" in written
            assert all(f"`{option}`" in written for option in row.options.model_fields)


def test_a_block_is_replaced_and_the_rest_left() -> None:
    text = "before\n<!-- table: model -->\nold\n<!-- end -->\nafter\n"
    done = rewritten(text)
    assert done.startswith("before\n<!-- table: model -->\n| `model` |")
    assert done.endswith("|\n<!-- end -->\nafter\n")
    assert "old" not in done
