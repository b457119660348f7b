"""A sweep: the same cells whatever runs them, kept, gone on with, and drawn."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import pfl_flower as pfl
from pfl_flower.run.grid import cells, readable
from pfl_flower.support.threads import allowed
from tests.support.runs import TINY

SMALL = {**TINY, "rounds": 3, "points-per-user": "20"}


def median(rows: Tensor) -> Tensor:
    return len(rows) * rows.median(dim=0).values


CALLS: list[None] = []


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    monkeypatch.setenv("FIRST_PROCESS", str(os.getpid()))


def in_the_run() -> bool:
    """Whether a rule that asks was tried twice: before the first cell, and before its own."""
    CALLS.append(None)
    return len(CALLS) > 2


def broken(rows: Tensor) -> Tensor:
    if in_the_run():
        raise ValueError("first line\nsecond line")
    return rows.sum(dim=0)


def moody(rows: Tensor) -> Tensor:
    if in_the_run() and "MOODY" in os.environ:
        raise OSError("no more space")
    return rows.sum(dim=0)


def on_two_threads(rows: Tensor) -> Tensor:
    # Rows are added on one thread; users' work is shared among those that are allowed.
    assert not in_the_run() or allowed() == 2
    return rows.sum(dim=0)


def lost(rows: Tensor) -> Tensor:
    if os.environ["FIRST_PROCESS"] != str(os.getpid()):
        os._exit(5)
    return rows.sum(dim=0)


def sweep(over: Mapping[str, Any], **options: Any) -> pfl.Sweep:
    fixed = {key: value for key, value in SMALL.items() if key not in over}
    return pfl.sweep(None, over, **{"progress": False, **fixed, **options})


def told(folder: Path, over: Mapping[str, Any], **options: Any) -> tuple[pfl.Sweep, str]:
    """Return a sweep in a folder, and what it said of the cells that were there."""
    console = Console(file=io.StringIO(), record=True, width=100)
    CALLS.clear()
    found = sweep(over, output=folder, progress=console, **options)
    return found, console.export_text()


def test_the_same_numbers_to_the_bit_whatever_jobs_and_wherever_it_is_kept(tmp_path: Path) -> None:
    over = {
        "lam": [0.1, 10],
        "aggregation": ["sum", median, lambda rows: 2 * rows.sum(dim=0)],
    }
    alone = sweep(over, seeds=(1, 2))
    side, _ = told(tmp_path, over, seeds=(1, 2), jobs=2)
    assert side.rows.to_csv() == alone.rows.to_csv() == (tmp_path / "sweep.csv").read_text()
    assert alone.rows.columns[:3] == ("lam", "aggregation", "seed")
    assert alone.rows.columns[-2:] == ("passed", "error")
    assert "seconds" not in alone.rows
    assert list(dict.fromkeys(alone.rows["aggregation"])) == ["sum", "median", "<lambda>"]
    single = pfl.run(**{k.replace("-", "_"): v for k, v in SMALL.items()}, lam=10, seed=2)
    where = alone.rows.groups(("lam", "aggregation", "seed"))
    row = next(rows[0] for point, rows in where if tuple(point.values()) == (10.0, "sum", 2))
    for found in (alone, side, pfl.load(tmp_path)):
        assert isinstance(found, pfl.Sweep)
        result = found.results[row]
        assert result is not None
        # A run by itself may use more threads.
        assert np.allclose(result.rho, single.rho, rtol=0, atol=1e-12)
    assert pfl.load(tmp_path).rows.to_csv() == alone.rows.to_csv()  # type: ignore[union-attr]


SCRIPT = """
import json, sys, time
import pfl_flower as pfl
from pfl_flower import api
if __name__ == "__main__":
    slow = api._run
    api._run = lambda *given, **named: (time.sleep(0.4), slow(*given, **named))[1]
    keys = json.loads(sys.argv[2])
    pfl.sweep(None, {"lam": [0.1, 1.0, 10.0]}, seeds=(1, 2), output=sys.argv[1], **keys)
"""


def test_a_sweep_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    import json

    over: dict[str, Any] = {"lam": [0.1, 1.0, 10.0]}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "killed"), json.dumps(SMALL)],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("*/*/cell.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = sorted((tmp_path / "killed").glob("*/*/cell.json"))
    before = [path.stat().st_mtime_ns for path in kept]
    assert 2 <= len(kept) < 6
    assert len(pfl.load(tmp_path / "killed").rows) >= len(kept) - 1  # type: ignore[union-attr]
    found, said = told(tmp_path / "killed", over, seeds=(1, 2))
    assert f"kept from before: {len(kept)} of 6 cells" in said
    assert [path.stat().st_mtime_ns for path in kept] == before
    whole, _ = told(tmp_path / "whole", over, seeds=(1, 2))
    assert found.rows.to_csv() == whole.rows.to_csv()
    assert (tmp_path / "killed/sweep.csv").read_bytes() == (
        tmp_path / "whole/sweep.csv"
    ).read_bytes()


def test_what_is_asked_otherwise_is_run_again_and_nothing_else(tmp_path: Path) -> None:
    told(tmp_path, {"lam": [0.1, 1.0]})
    for over, options, kept in (
        ({"lam": [0.1, 1.0, 10.0]}, {}, 2),
        ({"lam": [10.0, 0.1]}, {}, 2),
        ({"lam": [0.1]}, {"seeds": (1, 2)}, 1),
        ({"lam": [0.1, 1.0]}, {"rounds": 2, "fresh": True}, 0),
        ({"lam": [0.1, 1.0]}, {"rounds": 2}, 2),
    ):
        found, said = told(tmp_path, over, **options)
        assert (f"kept from before: {kept} of" in said) == (kept > 0)
        assert len(found.rows) == len(over["lam"]) * len(options.get("seeds", (1,)))
    with pytest.raises(pfl.ConfigError, match=r"rounds = 2 there, 3 here"):
        told(tmp_path, {"lam": [0.1]})


def test_a_plug_in_of_other_code_is_run_again(tmp_path: Path) -> None:
    def gain(by: str) -> Callable[[Tensor], Tensor]:
        (tmp_path / "gain_rule.py").write_text(f"def gain(rows):\n    return {by} * rows.sum(0)\n")
        sys.modules.pop("gain_rule", None)
        import gain_rule  # type: ignore[import-not-found]

        return gain_rule.gain  # type: ignore[no-any-return]

    sys.path.insert(0, str(tmp_path))
    try:
        first, _ = told(tmp_path / "kept", {"aggregation": [gain("1.0")]})
        _, same = told(tmp_path / "kept", {"aggregation": [gain("1.0")]})
        # Another size, which tells Python that the file has changed.
        other, said = told(tmp_path / "kept", {"aggregation": [gain("0.25")]})
    finally:
        sys.path.remove(str(tmp_path))
    assert "kept from before: 1 of 1" in same
    assert "kept from before" not in said
    assert other.rows["norm_rho"][0] != first.rows["norm_rho"][0]


@pytest.mark.parametrize(
    ("rule", "jobs", "why"),
    [
        (broken, 1, "ValueError: first line second line"),
        (lost, 2, "its process ended: exit code 5"),
    ],
)
def test_a_cell_that_breaks_off_is_a_row_and_the_others_are_run(
    rule: Callable[[Tensor], Tensor], jobs: int, why: str, tmp_path: Path
) -> None:
    found, said = told(tmp_path, {"aggregation": ["sum", rule, median]}, jobs=jobs)
    assert found.errors == {1: why}
    assert found.rows["passed"].tolist() == [True, False, True]
    assert [result is None for result in found.results] == [False, True, False]
    assert not found.passed
    assert "1 broke off" in repr(found)
    assert "1 failed" in said
    trace = next(tmp_path.glob("aggregation=*/seed-1/error.txt"))
    assert trace.read_text().startswith(why)
    assert len(found.table()) == 3
    loaded = pfl.load(tmp_path)
    assert isinstance(loaded, pfl.Sweep)
    assert (loaded.errors, len(loaded.rows)) == ({1: why}, 3)
    mended, said = told(tmp_path, {"aggregation": ["sum", median]})
    assert "kept from before: 2 of 2" in said
    assert mended.passed


def test_a_cell_that_fails_when_it_is_run_again_is_no_longer_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(tmp_path, {"aggregation": [moody]})[0].passed
    monkeypatch.setenv("MOODY", "1")
    assert told(tmp_path, {"aggregation": [moody]})[0].passed
    assert not told(tmp_path, {"aggregation": [moody]}, fresh=True)[0].passed
    loaded = pfl.load(tmp_path)
    assert isinstance(loaded, pfl.Sweep)
    assert loaded.errors == {0: "WorldError: no more space"}
    assert "kept" not in told(tmp_path, {"aggregation": [moody]})[1]


@pytest.mark.parametrize(("threads", "broke"), [(1, True), (2, False)])
def test_a_cell_has_its_number_of_threads(threads: int, broke: bool) -> None:
    before = torch.get_num_threads()
    found = sweep({"aggregation": [on_two_threads]}, threads=threads)
    assert bool(found.errors) == broke
    assert torch.get_num_threads() == before


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"lam": [1, -1]}, {}, "lam = -1: expected greater than 0"),
    ({"lamm": [1]}, {}, "lamm = 1: unknown key"),
    ({"lam": [1, 1.0]}, {}, "lam = 1, 1.0: expected different values"),
    ({"lam": []}, {}, "lam: expected at least one value"),
    ({"lam": [1]}, {"lam": 2}, "lam = 2: expected no key that is swept over"),
    ({"lam": [1]}, {"seeds": ()}, "seeds: expected at least one value"),
    ({"lam": [1]}, {"seeds": (1, 1)}, "seeds = 1, 1: expected different"),
    ({"seed": [1]}, {}, "seed: expected seeds instead"),
    ({"lam": [1]}, {"name": "x"}, "name: expected output instead"),
    ({"lam": [1]}, {"jobs": 0}, "jobs = 0: expected at least 1"),
    ({"checkpoint-every": [0, 1]}, {}, "checkpoint-every = 1: expected 0"),
    ({"attack": ["cga", "no.such:Attack"]}, {}, "attack = no.such:Attack: expected something"),
    (
        {"points-per-user": ["20", "5000"]},
        {"dataset": "digits", "features": 20},
        "points-per-user = 5000: ",
    ),
]


@pytest.mark.parametrize(("over", "options", "said"), BAD, ids=[said for *_, said in BAD])
def test_a_bad_value_is_refused_before_the_first_cell(
    over: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(pfl.ConfigError) as refused:
        sweep(over, output=tmp_path / "sweep", **options)
    assert str(refused.value).startswith(said)
    assert not (tmp_path / "sweep").exists()


def test_folders_are_readable_and_never_the_same() -> None:
    points: list[dict[str, Any]] = [
        {"dataset": "imagefolder:/a/b"},
        {"dataset": "imagefolder:/a_b"},
        {"lam": 1e-5},
        {"attack": "a" * 300},
        {"attack": "a" * 301},
        {f"key-{i}": "x" * 40 for i in range(9)},
        {},
    ]
    names = [readable(point) for point in points]
    assert len(set(names)) == len(names)
    assert all(len(name) < 255 and "/" not in name for name in names)
    planned = cells(SMALL, {"lam": [0.1], "points-per-user": [[20, 5]]}, [3], Path("/out"))
    assert planned[0].folder == Path("/out/lam=0.1,points-per-user=20_5-8788ec/seed-3")


def test_the_picture_has_a_panel_a_metric_a_line_a_value_and_the_spread() -> None:
    found = sweep({"lam": [0.1, 1, 10], "aggregation": ["sum", median]}, seeds=(1, 2, 3))
    figure = found.plot()
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "accuracy on true labels",
        "accuracy on the attacker's labels",
    ]
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_xscale()) == ("lam", "log")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "aggregation = sum",
        "aggregation = median",
    ]
    table = found.table("accuracy_true")
    drawn = [container.lines[0].get_ydata() for container in axes.containers]
    for number, rule in enumerate(("sum", "median")):
        wanted = table["accuracy_true"][table["aggregation"] == rule]
        assert np.allclose(drawn[number], wanted)
    spread = axes.containers[1].lines[2][0].get_segments()
    wide = table["accuracy_true_std"][table["aggregation"] == "median"]
    assert np.allclose([segment[1][1] - segment[0][1] for segment in spread], 2 * wide)
    other = found.plot(x="aggregation", y="norm_rho", by="lam")
    assert len(other.axes) == 1
    assert [tick.get_text() for tick in other.axes[0].get_xticklabels()] == ["sum", "median"]
    assert len(other.axes[0].containers) == 3
    for wrong in ({"x": "users"}, {"y": "nothing"}, {"by": "users"}):
        with pytest.raises(pfl.ConfigError, match="expected one of"):
            found.plot(**wrong)  # type: ignore[arg-type]
