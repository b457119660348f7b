"""What strangers wrote, where a person reads it: terminal, tables, figures, page, notebook."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text as MatplotlibText
from rich.console import Console
from torch import Tensor

from experiments.__main__ import main
from experiments.report.command import report
from experiments.running import engines
from experiments.running.options import Options
from experiments.running.preset_runs import show
from pfl_flower.api import load, run, sweep
from pfl_flower.data.spec import DataSpec
from pfl_flower.data.synthetic import Synthetic
from pfl_flower.run.columns import Table
from pfl_flower.run.figures import draw_run, draw_runs
from pfl_flower.run.sweep_figures import draw_sweep
from pfl_flower.support.errors import RunFailedError
from pfl_flower.support.foreign_text import (
    legible,
)
from tests.support import fake_studies
from tests.support.fake_studies import leave
from tests.support.foreign_texts import (
    LONGEST_ON_PAPER,
    TEXTS,
    by_name,
    check,
    check_boundary,
)

SMALL: dict[str, Any] = {
    "dataset": "synthetic-logistic",
    "features": 3,
    "users": 3,
    "strategic_users": 2,
    "points_per_user": 5,
    "rounds": 1,
    "nu": 0.1,
}


def excerpt_of_a_failed_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    def run(command: list[str], stdout: Any = None, **_: object) -> object:
        if stdout is not None:
            line = f"\x1b[1;91mERROR\x1b[0m :     {text}\nsecond"
            stdout.write(line.encode("utf-8", "replace").decode())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(engines.subprocess, "run", run)
    options = Options(engine="simulation", output=tmp_path)
    with pytest.raises(RunFailedError) as caught:
        engines.run_once(options.configure({}, tmp_path, 1), options)
    return [str(caught.value)]


def command_line(text: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["run", "digits-l2", "--set", f"dataset={text}"]) == 2
    return capsys.readouterr().err.rstrip("\n").split("\n")[:1]


def table(text: str) -> list[str]:
    shown = str(Table({text: [1, 2], "error": [text, ""]}))
    check(shown, lines=3)
    return shown.split("\n")


def page_of_a_table(text: str) -> list[str]:
    shown = Table({"error": [text, ""]})._repr_html_()
    assert "<script>" not in shown
    return [shown]


def summary() -> dict[str, Any]:
    return {"experiment": "digits-l2", "metrics": {}, "checks": [], "passed": True}


def printed_summary(text: str, tmp_path: Path) -> list[str]:
    found = summary()
    found["experiment"] = text
    found["metrics"] = {text: {"mean": 1.0, "std": 0.0}}
    found["checks"] = [{"name": text, "value": text, "expected": text, "passed": True}]
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True, color_system=None)
    show(found, tmp_path, console)
    assert "passed" in file.getvalue()
    if "[red]" in text:
        assert "[red]FAILED[/red]" in file.getvalue() and ":skull:" in file.getvalue()
    return file.getvalue().split("\n")


def raising_later(text: str) -> Callable[..., object]:
    """Return a data set whose test set can be had once."""

    class Later(Synthetic):
        asked = 0

        def __init__(self, spec: DataSpec) -> None:
            super().__init__("logistic", 3, spec.seed)

        def test_set(self) -> tuple[Tensor, Tensor]:
            self.asked += 1
            if self.asked > 1:
                raise RuntimeError(text)
            return super().test_set()

    return Later


def figures(text: str) -> list[str]:
    """Draw it as a title, as lines' names and as values of a key: a dollar begins no formula."""
    rows = {"accuracy_true": 0.5, "norm_rho": 1.0, "round": 1.0}
    curves = [[rows, {**rows, "round": 2.0}]]
    cells = Table({"key": [text, "b"], "other": ["_x", text], "seed": [1, 1], "loss": [0.1, 0.2]})
    drawn = [
        draw_run(curves, text),
        draw_runs({f"_{text}": curves, text: curves}),
        draw_sweep(cells, ["key", "other"]),
    ]
    names = [each.get_text() for figure in drawn for each in figure.findobj(MatplotlibText)]
    for figure in drawn:
        figure.savefig(io.BytesIO(), format="svg")
    assert len(drawn[1].legends[0].get_texts()) == 2
    return names


def sweep_of_a_plugin_that_fails(text: str, tmp_path: Path) -> list[str]:
    """Return what a sweep keeps and shows of an exception, a traceback too."""
    fixed = {key: value for key, value in SMALL.items() if key != "dataset"}
    over = {"dataset": [raising_later(text)]}
    found = sweep(None, over, output=tmp_path / "sweep", progress=False, **fixed)
    (kept,) = tmp_path.rglob("error.txt")
    assert legible(kept.read_text()) == kept.read_text()
    read = load(tmp_path / "sweep")
    return [found.errors[0], read.errors[0], repr(found), *str(read.rows).split("\n")]


def result_of_somebody(text: str, tmp_path: Path) -> list[str]:
    """Return what stands in a notebook for a run that somebody else has made."""
    run(**SMALL).save(tmp_path)
    kept = json.loads((tmp_path / "summary.json").read_text())
    kept["config"]["name"] = kept["config"]["dataset"] = kept["checks"][0]["name"] = text
    kept["checks"][0]["passed"] = False
    kept["left_out"] = [{"what": text, "count": 3, "where": text}]
    (tmp_path / "summary.json").write_text(json.dumps(kept))
    return [repr(load(tmp_path))]


def comparison(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what is printed of two runs that somebody else has made."""
    for number in (1, 2):
        folder = tmp_path / str(number)
        run(**SMALL).save(folder)
        kept = json.loads((folder / "summary.json").read_text())
        kept["config"]["data-dir"] = f"{number}{text}"
        (folder / "summary.json").write_text(json.dumps(kept))
    assert main(["compare", str(tmp_path / "1"), str(tmp_path / "2")]) == 0
    return capsys.readouterr().out.split("\n")


def report_page(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    fake_studies.register(monkeypatch)
    leave(tmp_path, "good", settings={"data-dir": text})
    path = tmp_path / "good" / "summary.json"
    found = json.loads(path.read_text())
    found["checks"][0]["name"] = found["hardware"] = found["commit"] = text
    path.write_text(json.dumps(found))
    console = Console(file=io.StringIO())
    html, markdown = report(tmp_path, ["good"], console)
    kept = html.read_text()
    assert "<script>" not in kept
    for line in [*kept.split("\n"), *markdown.read_text().split("\n")]:
        check("" if "data:image" in line else line, longest=LONGEST_ON_PAPER)
    return console.file.getvalue().split("\n")  # type: ignore[attr-defined]


BOUNDARIES = by_name(
    excerpt_of_a_failed_run,
    command_line,
    table,
    page_of_a_table,
    printed_summary,
    comparison,
    figures,
    sweep_of_a_plugin_that_fails,
    result_of_somebody,
    report_page,
)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kind", TEXTS)
def test_a_foreign_text_is_shown_and_obeyed_nowhere(
    kind: str, boundary: str, request: pytest.FixtureRequest
) -> None:
    check_boundary(BOUNDARIES[boundary], kind, request)
