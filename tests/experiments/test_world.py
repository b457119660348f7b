"""What disk, permissions and memory do to a command: one line, exit code 2, whole files."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import pfl_flower as pfl
from experiments.__main__ import KEPT, main
from pfl_flower import server_app
from pfl_flower.run.rounds import read_rounds
from pfl_flower.support.errors import ConfigError, WorldError
from pfl_flower.support.folders import writable_folder
from pfl_flower.support.world import failure
from tests.support.runs import TINY

PLAIN = {key.replace("-", "_"): value for key, value in TINY.items()}
RUN = ["run", "digits-squared-l2", "--rounds", "2", "--set", "points-per-user=20"]
COMMANDS = {
    "run": RUN,
    "study": ["run", "prop1-projection", "--quick"],
    "sweep": ["sweep", "digits-l2", "--over", "lam=1,2", "--set", "points-per-user=20", "rounds=1"],
    "reproduce": ["reproduce", "prop1-projection", "--quick"],
    "defences": ["defences", "--quick"],
    "report": ["report", "prop1-projection"],
    "benchmark": ["benchmark", "--quick"],
    "influence": ["influence", "--quick", "--rule", "sum"],
    "train-vgg": ["train-vgg", "--data-dir", "/nowhere"],
}
IN_THE_WAY = "in-the-way"
PLACES = {
    "proc": ("/proc/x", "No such file or directory"),
    "sys": ("/sys/x", "expected a folder to write to"),
    "a file": (IN_THE_WAY, "exists"),
    "below a file": (f"{IN_THE_WAY}/x", "Not a directory"),
    "nobody's home": ("~nosuch/x", "there is no such user"),
    "a zero byte": ("a\0b", "none has a zero byte"),
    "too long a name": ("x" * 300, "at most 255 in each name"),
    "too long a path": ("/tmp/" + "y/" * 2100, "expected a path of at most 4095 bytes"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with a file in it where a folder is asked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / IN_THE_WAY).write_text("mine")
    return tmp_path


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_where_nothing_can_be_written_nothing_is_run(
    command: str, place: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, said = PLACES[place]
    if command == "train-vgg":
        output += "/weights.pt"
    assert main([*COMMANDS[command], "--output", output]) == 2
    error = capsys.readouterr().err
    assert error.startswith("--output = "), error
    assert said in error or "expected a folder to write to" in error
    assert error.count("\n") == 1
    assert [path.name for path in here.iterdir()] == [IN_THE_WAY]
    assert (here / IN_THE_WAY).read_text() == "mine"


@pytest.mark.parametrize("place", PLACES)
def test_from_python_as_well(place: str, here: Path) -> None:
    output, _ = PLACES[place]
    for call in (
        lambda: pfl.run(**PLAIN, output=output),
        lambda: pfl.sweep(None, {"lam": [1.0]}, output=output, progress=False, **PLAIN),
        lambda: pfl.run(**PLAIN, output_dir=output, output=None).save(output),
        lambda: pfl.load(output),
        lambda: pfl.run(**PLAIN, output=here / "r", checkpoint_every=1, state_dir=output),
        lambda: pfl.run(**PLAIN, resume=output),
    ):
        with pytest.raises(ConfigError):
            call()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_nothing_is_found_before_the_run(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pfl_flower.support.folders.tempfile.TemporaryFile", full)
    assert main([*RUN, "--output", str(tmp_path)]) == 2
    assert f"expected a folder to write to ({os.strerror(number)})" in capsys.readouterr().err


def test_a_disk_without_room_is_found_by_writing_to_it(tmp_path: Path) -> None:
    """Folders and empty files can still be made there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ConfigError, match="expected a folder to write to"):
            writable_folder("--output", tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert writable_folder("--output", tmp_path / "x") == tmp_path / "x"
    assert not list((tmp_path / "x").iterdir())


FAILURES: Sequence[tuple[BaseException, str]] = [
    (OSError(errno.ENOSPC, "No space left on device", "/x/rounds.csv"), "No space left on device"),
    (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
    (MemoryError(), "memory ran out"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"), "memory ran out"),
    (RuntimeError("alloc_cpu.cpp: DefaultCPUAllocator: can't allocate memory"), "memory ran out"),
]


@pytest.mark.parametrize(("error", "said"), FAILURES, ids=[said for _, said in FAILURES])
@pytest.mark.parametrize("engine", ["command", "python"])
def test_what_fails_during_a_run_is_one_line_that_says_how_to_go_on(
    error: BaseException,
    said: str,
    engine: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(server_app.ParameterServer, "aggregate_train", failing)
    if engine == "python":
        with pytest.raises(WorldError, match=said):
            pfl.run(**PLAIN, output=tmp_path / "x")
        return
    ways = ([], "with checkpoint-every"), (["checkpoint-every=1"], "resume = auto")
    for keys, going_on in ways:
        assert main([*RUN, *keys, "--output", str(tmp_path)]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith(said) and going_on in shown, shown
        assert shown.count("\n") == 1
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob(".lock"))


def test_an_error_of_the_code_is_none_of_the_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failure(RuntimeError("a bug")) is None
    assert failure(ValueError("a bug")) is None

    def wrong(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("experiments.running.listing.show_names", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["list"])


@pytest.mark.parametrize("command", ["report", "study", "sweep"])
def test_what_fails_outside_of_a_run_is_one_line_too(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/x/y")

    monkeypatch.setattr("pfl_flower.support.files.os.replace", full)
    assert main([*COMMANDS[command], "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"No space left on device: /x/y; {KEPT}\n"
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("room", [2_000, 10_000])
def test_a_disk_that_fills_up_leaves_whole_files(room: int, tmp_path: Path) -> None:
    """In a fork whose files may have so many bytes: its table of rounds ends with a whole line."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            # A fork has none of its parent's OpenMP threads, and would wait for them for ever.
            torch.set_num_threads(1)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            from pfl_flower.support import folders

            folders.PROBE = b"x"
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
            pfl.run(**{**PLAIN, "rounds": 60}, output=tmp_path / "x")
        except WorldError as error:
            code = 0 if "File too large" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["rounds.csv"]
    text = (tmp_path / "x/rounds.csv").read_text()
    assert text.endswith("\n") and len(text) > room - 400
    rows = read_rounds(tmp_path / "x/rounds.csv")
    assert [row["round"] for row in rows] == list(range(len(rows)))
