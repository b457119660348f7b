"""What a run leaves out stands in its summary, its table, its result, and on the page."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from rich.console import Console

from experiments.report.command import report
from experiments.running.options import Options
from experiments.running.preset_runs import preset_folder, run_preset, show
from pfl_flower import api, server_app
from pfl_flower.run.conclusion import table
from pfl_flower.run.left_out import WORDS, left_out_of_rounds
from pfl_flower.run.outcome import Outcome
from pfl_flower.run.problem import build_problem
from pfl_flower.run.rounds import Rounds
from pfl_flower.support.left_out import LeftOut
from pfl_flower.transport.inprocess import InProcessGrid
from tests.support import fake_studies
from tests.support.images import write_tree
from tests.support.runs import configure, tampering

WEBP = "files that are no .jpg, .jpeg or .png"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images with two files that are none."""
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path / "cache"))
    made = write_tree(tmp_path / "tree", size=4)
    for name in ("a.webp", "[red]b.bmp"):
        (made / "train/cat" / name).write_bytes(b"")
    return made


def test_files_that_are_not_read_reach_the_result(tree: Path, tmp_path: Path) -> None:
    keys = {"users": 3, "strategic_users": 2, "points_per_user": 3, "rounds": 1, "nu": 0.1}
    result = api.run(dataset=f"imagefolder:{tree}", output=tmp_path / "out", **keys)
    expected = LeftOut(what=WEBP, count=2, where="train/cat/[red]b.bmp, train/cat/a.webp")
    assert result.left_out == [expected]
    assert f"left out: {WEBP}, 2" in repr(result)
    kept = json.loads((tmp_path / "out/summary.json").read_text())
    assert kept["left_out"] == [asdict(expected)]
    assert api.load(tmp_path / "out").left_out == [expected]


def test_what_is_left_out_is_printed_and_on_the_page(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preset's run, of two seeds."""
    settings = {"dataset": f"imagefolder:{tree}", "points-per-user": "3", "rounds": 1}
    options = Options(output=tmp_path / "out", settings=settings, seeds=(1, 2))
    file = io.StringIO()
    console = Console(file=file, width=200)
    summary = run_preset("digits-l2", options, console)
    assert [one["count"] for one in summary["left_out"]] == [2]
    folder = preset_folder("digits-l2", options)
    show(summary, folder, console)
    assert f"left out: {WEBP}: 2 (train/cat/[red]b.bmp, train/cat/a.webp)" in file.getvalue()
    log = (folder / "seed-1/run.log").read_text()
    assert "train/cat/[red]b.bmp" in log
    fake_studies.register(monkeypatch)
    for path in report(tmp_path / "out", ["good"], console):
        assert "eft out: files that are no" in path.read_text()


def empty(question: Message, reply: Message) -> Message:
    return Message(RecordDict(), reply_to=question)


def outcome_of(**keys: object) -> Outcome:
    config = configure(rounds=3, **keys)
    grid = InProcessGrid(tampering(4, empty), nodes=2, run_config=config.flat())
    return server_app.run(grid, build_problem(config))


def test_replies_that_are_rejected_are_told_with_their_rounds() -> None:
    outcome = outcome_of()
    rejected = "reports, rejected as forged: 3 (rounds 1 to 3)"
    replies = f"{WORDS['forged']}: 12 (rounds 1 to 3)"
    assert [str(one) for one in outcome.left_out] == [replies, rejected]
    assert "left out: reports, rejected as forged" in " ".join(table(outcome).split())


def test_nothing_is_told_where_nothing_is_left_out() -> None:
    config = configure(rounds=2)
    result = api.run(**{key.replace("-", "_"): value for key, value in config.flat().items()})
    assert result.left_out == []
    assert result.summary["left_out"] == []
    assert "left out" not in repr(result)


def test_kinds_are_added_up_over_the_rounds() -> None:
    rounds = Rounds()
    rounds.write({"round": 0})
    rounds.write({"round": 1, "notices": "absurd:2;stray:1", "rejection_reasons": "no-reply:4"})
    rounds.write({"round": 2, "notices": "another kind:1"})
    rounds.write({"round": 3, "notices": "absurd:1", "rejection_reasons": "no-reply:1;malformed:1"})
    assert [(one.what, one.count, one.where) for one in left_out_of_rounds(rounds.text)] == [
        ("entries of nodes' metrics that cannot be", 3, "rounds 1 to 3"),
        ("another kind", 1, "round 2"),
        ("replies to no question of their round", 1, "round 1"),
        ("reports, rejected as malformed", 1, "round 3"),
        ("reports, rejected as no-reply", 5, "rounds 1 to 3"),
    ]
