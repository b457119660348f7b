"""What is asked of a SuperLink, and what a configuration must say to be understood there."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.common.logger import log as flowers_log

from experiments.__main__ import main
from experiments.running import engines, superlink
from experiments.running.elsewhere import check_plugins_travel, spelled_out
from experiments.running.engines import ROOT
from experiments.running.options import Options
from experiments.running.superlink import failure_in, run_id, stop_run
from pfl_flower import client_app, server_app
from pfl_flower.run.config import parse_config
from pfl_flower.support.errors import ConfigError
from pfl_flower.transport.inprocess import run_in_process
from tests.support.runs import TINY

STARTED = "\x1b[32m🎊 Successfully started run 123\x1b[0m\n"
BOX = """
Starting local SuperLink on 127.0.0.1:39091...
╭─ Error ──────────────────────────────────────────────────────────────────────╮
│ {0:<76} │
│ {1:<76} │
╰──────────────────────────────────────────────────────────────────────────────╯
"""
FAILED = "Failed to start local SuperLink: `flower-superlink` exited with code 1. See"


def test_an_error_in_a_box_is_read_as_one_line() -> None:
    said = failure_in(BOX.format("[Errno 2] No such file or", "directory: '/proc/x'"), {})
    assert said == "[Errno 2] No such file or directory: '/proc/x'"


def test_a_superlink_whose_port_is_taken_is_told_of(tmp_path: Path) -> None:
    text = BOX.format(FAILED, f"logs at {tmp_path}/superlink.log.")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        said = failure_in(text, {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port})
    assert f"Another program has port {port}" in said
    assert said.startswith("Failed to start local SuperLink") and "\n" not in said


def test_a_superlink_that_says_why_it_did_not_start_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superlink, "_taken", lambda port: False)
    log = tmp_path / "superlink.log"
    text = BOX.format(FAILED, f"logs at {log}.")
    assert failure_in(text, {}).endswith(f"See logs at {log}.")
    log.write_text("INFO start\nsqlite3.OperationalError: unable to open database\nINFO end\n")
    assert failure_in(text, {}).endswith(
        "It says: sqlite3.OperationalError: unable to open database"
    )


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("INFO : x\n\x1b[91mERROR\x1b[0m :     first\nERROR : second\n", "first"),
        ("one\nlast\n╰────╯\n", "last"),
        ("", "no output"),
    ],
)
def test_the_first_error_or_the_last_line_is_the_reason(output: str, said: str) -> None:
    assert failure_in(output, {}) == said


@pytest.mark.parametrize(
    ("output", "answer", "said"),
    [
        (STARTED, '{"success": true, "run-id": "123"}', "run 123 was stopped in the SuperLink"),
        (STARTED, '{"success": false}', "run 123 goes on in the SuperLink: flwr stop 123 ends it"),
        (STARTED, "no JSON", "run 123 goes on in the SuperLink: flwr stop 123 ends it"),
        (STARTED, None, "run 123 goes on in the SuperLink: flwr stop 123 ends it"),
        ("Starting\n", "{}", "no run was started in the SuperLink"),
    ],
)
def test_an_interrupted_run_is_stopped_or_the_line_that_does_is_said(
    output: str, answer: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> object:
        asked.append(command[1:])
        if answer is None:
            raise subprocess.TimeoutExpired(command, 30)
        return subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(superlink.subprocess, "run", run)
    assert stop_run(output, {}).startswith(said)
    assert asked == ([["stop", "123", "--format", "json"]] if run_id(output) else [])


def test_an_interrupt_under_the_simulation_is_two_lines_and_its_own_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], stdout: Any = None, **_: object) -> object:
        if command[1] == "run":
            stdout.write(STARTED)
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(command, 0, '{"success": true}', "")

    monkeypatch.setattr(engines.subprocess, "run", run)
    arguments = ["run", "digits-l2", "--engine", "simulation", "--output", str(tmp_path)]
    assert main(arguments) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "run 123 was stopped in the SuperLink"
    assert lines[1].startswith("interrupted: ") and len(lines) == 2


def test_what_means_something_else_elsewhere_is_spelled_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PFL_DATA_DIR", "data")
    (tmp_path / "table.csv").touch()
    keys = {"state-dir": "state", "attack": "model", "attack-model": "~/run", "resume": "x"}
    found = spelled_out(parse_config({**keys, "dataset": "csv:table.csv"}))
    assert found == {
        "data-dir": f"{tmp_path}/data",
        "state-dir": f"{tmp_path}/state",
        "attack-model": f"{Path.home()}/run",
        "resume": f"{tmp_path}/x",
        "dataset": f"csv:{tmp_path}/table.csv",
    }
    assert "resume" not in spelled_out(parse_config({"resume": "auto"}))


@pytest.mark.parametrize(
    ("dataset", "there"),
    [
        ("imagefolder:tree", "imagefolder:tree"),
        ("imagefolder:~/tree", f"imagefolder:{Path.home()}/tree"),
        ("hf:mnist", "hf:mnist"),
        ("csv:absent.csv", "csv:absent.csv"),
        ("digits", None),
    ],
)
def test_a_data_sets_path_is_looked_for_where_it_would_be(
    dataset: str, there: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert spelled_out(parse_config({"dataset": dataset})).get("dataset") == there


def test_the_simulation_alone_is_told_whole_paths(tmp_path: Path) -> None:
    keys = {"dataset": "mnist"}
    at_home = Options(engine="inprocess").configure(keys, tmp_path, 1)
    abroad = Options(engine="simulation").configure(keys, tmp_path, 1)
    assert at_home.data_dir == "" and Path(abroad.data_dir).is_absolute()
    assert at_home.folder() == abroad.folder() == tmp_path / "seed-1"


@contextmanager
def imported_from(folder: Path, name: str) -> Iterator[None]:
    (folder / f"{name}.py").write_text("def double(rows):\n    return 2 * rows.sum(dim=0)\n")
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(name, None)


def test_a_plug_in_that_flower_does_not_take_along_is_refused(tmp_path: Path) -> None:
    with imported_from(tmp_path, "far_away"):
        config = parse_config({"aggregation": "far_away:double"})
        with pytest.raises(ConfigError) as refused:
            check_plugins_travel(config, ROOT)
        assert str(refused.value).startswith("aggregation = far_away:double: expected, under")
        assert f"{tmp_path}/far_away.py" in str(refused.value)
        check_plugins_travel(config, tmp_path)
    check_plugins_travel(parse_config({"aggregation": "torch:sum"}), ROOT)
    check_plugins_travel(parse_config({"aggregation": "tests.run.test_sweeps:broken"}), ROOT)


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def heard() -> Iterator[list[str]]:
    handler, logger = Heard(), logging.getLogger("flwr")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


def as_flower_does(keys: dict[str, Any]) -> str:
    """Run a ServerApp and log what it raises as Flower's processes do; return what that is."""
    try:
        run_in_process(server_app.app, client_app.app, nodes=1, run_config=keys)
    except Exception as error:
        flowers_log(logging.ERROR, "%s raised an exception", "ServerApp", exc_info=error)
        return type(error).__name__
    return ""


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"lam": -1.0}, "lam = -1.0: expected greater than 0"),
        ({"lamb": 1.0}, "lamb = 1.0: unknown key"),
        ({"output-dir": "/proc/x"}, "output-dir = /proc/x/digits-squared-l2"),
        ({"users": 10**12}, "users = 1000000000000: expected at most"),
    ],
)
def test_a_refusal_of_the_server_app_is_one_line_and_still_ends_the_run(
    keys: dict[str, Any], line: str, heard: list[str]
) -> None:
    assert as_flower_does(keys) == "ConfigError"
    said = [one for one in heard if not one.startswith("results in")]
    assert len(said) == 1 and said[0].startswith(line) and "\n" not in said[0], heard


def test_a_bug_keeps_its_traceback(heard: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(server_app, "build_problem", wrong)
    assert as_flower_does({}) == "KeyError"
    assert "Traceback" in heard[-1] and "a bug" in heard[-1]


def test_the_server_app_says_first_where_it_reads_and_writes(
    heard: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfl_flower.run.figures.run_figure", lambda *_: ())
    keys = {**TINY, "rounds": 1, "name": "x", "output-dir": str(tmp_path)}
    assert as_flower_does(keys) == ""
    assert heard[0].startswith(f"results in {tmp_path}/x, as user ")
    assert as_flower_does({"dataset": "csv:none.csv", "data-dir": "/d"}) == "DataError"
    assert "/digits-squared-l2-with-dataset=csv_none.csv-" in heard[-2]
    assert ", data in /d, as user " in heard[-2] and heard[-1].startswith("dataset = csv:none.csv")
    assert json.loads((tmp_path / "x/summary.json").read_text())["passed"] is not None
