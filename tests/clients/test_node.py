"""What a node's own configuration comes to."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from clients.node import Node
from tests.support.images import write_tree
from tests.support.runs import configure


def node(own: dict[str, str], **keys: object) -> Node:
    """Return the node of a context."""
    config = configure(**keys).flat()
    return Node.of(
        Context(run_id=1, node_id=7, node_config=own, state=RecordDict(), run_config=config)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("keys", "read"),
    [
        ({}, False),
        ({"dataset": "digits", "features": 20}, False),
        ({"dataset": "imagefolder:mine", "points_per_user": "4", "features": 20}, True),
    ],
    ids=["made data", "digits", "images"],
)
def test_a_nodes_folder_of_data_is_that_of_the_runs_that_read_one(
    keys: dict[str, object], read: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node is started once, for runs of any data: those that need no folder run as well."""
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path / "cache"))
    write_tree(tmp_path / "own/mine", size=4)
    found = node({"data-path": str(tmp_path / "own")}, **keys)
    assert found.problem.config.data_dir == (str(tmp_path / "own") if read else "")
