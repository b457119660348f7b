"""The notebook runs from top to bottom, and shows what it shows as it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "notebooks" / "quickstart.ipynb"

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


def shown(notebook: Any) -> list[list[str]]:
    """Return the kinds of what each cell of code shows, leaving out what goes to stderr."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        [kind for output in cell.outputs for kind in sorted(output.get("data", {}))]
        for cell in cells
    ]


@pytest.mark.slow
def test_the_notebook_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[2]))
    kept = nbformat.read(NOTEBOOK, as_version=4)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        fresh, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert shown(fresh) == shown(kept)
    assert sum("image/png" in kinds for kinds in shown(fresh)) == 3
    text = nbformat.writes(fresh)
    assert "FAILED" not in text and "Warning" not in text
    assert not list(tmp_path.iterdir())


def test_what_is_kept_of_it_is_small_and_names_nobodys_folders() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 400_000
    assert '"output_type": "error"' not in text
    assert "/root" not in text and "/home" not in text and "/work" not in text
