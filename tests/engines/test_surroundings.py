"""A SuperLink that somebody else has started: another home, data folder and working directory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.running.engines import ROOT
from experiments.running.superlink import COLOURS, COMPLETED, run_id, run_status, script
from tests.support.superlink import private_superlink

pytestmark = pytest.mark.slow

TINY = "dataset='csv:table.csv' users=4 strategic-users='3' points-per-user='5' rounds=1"
COMMAND = [sys.executable, "-m", "experiments", "run", "digits-squared-l2", "--nodes", "2"]
SETTINGS = ["dataset=csv:table.csv", "users=4", "strategic-users=3", "points-per-user=5"]
ROWS = "".join(f"{n % 7},{n % 5},{n % 2}\n" for n in range(60))
TABLE = f"a,b,label\n{ROWS}"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a SuperLink as somebody else, and yield the environment in which it is found."""
    home = tmp_path_factory.mktemp("somebody")
    with private_superlink(home / "flwr") as environment:
        theirs = {**environment, "HOME": str(home), "PFL_DATA_DIR": str(home / "their-data")}
        (home / "their-data").mkdir()
        (home / "their-data/table.csv").write_text(TABLE)
        subprocess.run([script("flwr"), "ls"], env=theirs, cwd=home, check=True, timeout=60)
        yield {**environment, "THEIRS": str(home)}


def flwr_run(environment: dict[str, str], keys: str) -> str:
    command = [script("flwr"), "run", str(ROOT), "--stream", "--run-config", keys]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    return COLOURS.sub("", done.stdout + done.stderr)


def test_bad_input_to_a_bare_flwr_run_is_one_line_and_a_failed_run(
    elsewhere: dict[str, str],
) -> None:
    said = flwr_run(elsewhere, "lam=-1")
    assert len(re.findall(r"lam = -1: expected greater than 0", said)) == 1, said
    assert "Traceback" not in said
    assert run_status(said, elsewhere) == "finished:failed"


def test_a_bare_flwr_run_says_whose_it_is_and_where(elsewhere: dict[str, str]) -> None:
    """Results in the home folder of whoever has started the SuperLink, under their own name."""
    said = flwr_run(elsewhere, TINY)
    theirs = Path(elsewhere["THEIRS"])
    lines = [line for line in said.splitlines() if "results in" in line]
    assert len(lines) == 1, said
    assert f"results in {theirs}/pfl-flower/digits-squared-l2-with-" in lines[0]
    assert f"data in {theirs}/their-data, as user " in lines[0]
    assert run_status(said, elsewhere) == COMPLETED
    (folder,) = (theirs / "pfl-flower").iterdir()
    assert "rounds=1" in folder.name and (folder / "summary.json").exists()


def test_our_own_command_reads_and_writes_here(elsewhere: dict[str, str], tmp_path: Path) -> None:
    ours = {**elsewhere, "PYTHONPATH": str(ROOT), "PFL_DATA_DIR": str(tmp_path / "our-data")}
    (tmp_path / "table.csv").write_text(TABLE)
    command = [*COMMAND, "--engine", "simulation", "--rounds", "1", "--output", "out", "--set"]
    done = subprocess.run(
        [*command, *SETTINGS, "state-dir=state", "checkpoint-every=1"],
        env=ours,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.replace("\n", "")
    assert said.index(f"results in {tmp_path}/out") < said.index("summary.json")
    (log,) = tmp_path.glob("out/*/seed-1/run.log")
    assert f"data in {tmp_path}/our-data, as user " in log.read_text()
    assert list((tmp_path / "state").rglob("*.pfl"))


def test_a_plug_in_of_the_current_folder_is_refused_before_flower_starts(
    elsewhere: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "my_rule.py").write_text("def double(rows):\n    return 2 * rows.sum(dim=0)\n")
    command = [*COMMAND, "--engine", "simulation", "--output", "out", "--set", *SETTINGS]
    done = subprocess.run(
        [*command, "aggregation=my_rule:double"],
        env={**elsewhere, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("aggregation = my_rule:double: expected, under --engine")
    assert f"{tmp_path}/my_rule.py" in done.stderr and done.stderr.count("\n") == 1


def test_an_interrupt_stops_the_run_in_the_superlink(
    elsewhere: dict[str, str], tmp_path: Path
) -> None:
    command = [*COMMAND, "--engine", "simulation", "--rounds", "5000", "--output", str(tmp_path)]
    (tmp_path / "table.csv").write_text(TABLE)
    ours = {**elsewhere, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        [*command, "--set", *SETTINGS],
        env=ours,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Whatever this test was started by: a shell's `&` has an interrupt ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline, rows = time.monotonic() + 120, 0
    while rows < 5 and time.monotonic() < deadline:
        time.sleep(0.5)
        found = list(tmp_path.glob("*/seed-1/rounds.csv"))
        rows = len(found[0].read_text().splitlines()) if found else 0
    assert rows >= 5
    (log,) = tmp_path.glob("*/seed-1/run.log")
    os.kill(running.pid, signal.SIGINT)
    try:
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    started = run_id(log.read_text())
    lines = said.rstrip("\n").splitlines()
    assert lines[0] == f"run {started} was stopped in the SuperLink"
    assert lines[1].startswith("interrupted: ") and len(lines) == 2
    assert run_status(log.read_text(), elsewhere) == "finished:stopped"
