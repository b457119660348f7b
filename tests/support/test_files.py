"""One way to write a file: whole or not at all, and nothing beside it whatever stops it."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pfl_flower.run.figures import save
from pfl_flower.run.outcome import Course
from pfl_flower.run.results import write_json, write_limit
from pfl_flower.run.rounds import Rounds, read_rounds, write_together
from pfl_flower.support.files import read_sealed, replace_file, replacing, write_sealed
from pfl_flower.support.tensor_files import load_tensors, save_tensors

BIG = 60_000
"""Numbers, more than the limit of ``full_disk`` holds."""


def drawn(path: Path, points: int) -> None:
    figure = Figure()
    figure.subplots().plot(range(points), np.random.default_rng(1).random(points))
    save(figure, path.parent, path.stem)


def streamed(path: Path, count: int) -> None:
    with replacing(path) as file:
        for _ in range(count):
            file.write(b"12345678")


def ended(path: Path, count: int) -> None:
    rho = torch.zeros(2)
    rows = torch.zeros(count // 2, 2)
    Course(text="", rho=rho, gradient=rho, trajectory=rows).write(path.parent)


WRITERS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "bytes": ("x.bin", lambda path, n: replace_file(path, b"12345678" * n)),
    "text": ("x.txt", lambda path, n: replace_file(path, "ü234567" * n)),
    "durable": ("x.txt", lambda path, n: replace_file(path, "12345678" * n, durable=True)),
    "a stream": ("x.bin", streamed),
    "sealed": ("x.pfl", lambda path, n: write_sealed(path, "x", {}, {"a": np.zeros(n)})),
    "tensors": ("x.pt", lambda path, n: save_tensors(path, {"a": torch.zeros(n)})),
    "json": ("x.json", lambda path, n: write_json(path, {"a": [1.5] * n})),
    "limit": ("limit.npz", lambda path, n: write_limit(path, *torch.zeros(2, n), {})),
    "trajectory": ("trajectory.npy", ended),
    "picture": ("x.png", lambda path, n: drawn(path, min(n, 3000))),
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_a_process_without_room(path: Path, name: str, size: int) -> str:
    """Write in a fork whose files may have 4 KiB; return the error that it met."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = "nothing"
        try:
            # A fork has none of its parent's OpenMP threads, and would wait for them for ever.
            torch.set_num_threads(1)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            WRITERS[name][1](path, size)
        except BaseException as error:
            said = type(error).__name__
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as end:
        return end.read()


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_no_other(name: str, tmp_path: Path) -> None:
    file, write = WRITERS[name]
    path = tmp_path / file
    write(path, 8)
    before, listing = path.read_bytes(), names(tmp_path)
    assert in_a_process_without_room(path, name, BIG) == "OSError"
    assert path.read_bytes() == before
    assert names(tmp_path) == listing
    write(path, BIG)
    assert len(path.read_bytes()) > 4096
    assert names(tmp_path) == listing


@pytest.mark.parametrize("error", [OSError("full"), ValueError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [True, False])
def test_what_stops_the_writer_is_passed_on(
    error: BaseException, old: bool, tmp_path: Path
) -> None:
    path = tmp_path / "some" / "folder" / "x"
    if old:
        replace_file(path, b"old")
    with pytest.raises(type(error)), replacing(path) as file:
        file.write(b"half of it")
        raise error
    assert names(path.parent) == (["x"] if old else [])
    assert not old or path.read_bytes() == b"old"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_each_step_may_fail(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    replace_file(path, b"old")
    monkeypatch.setattr(os, step, lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        replace_file(path, b"new", durable=True)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("durable", [True, False])
def test_what_must_survive_the_loss_of_power_is_put_on_the_disk_before_its_name(
    durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    replace = os.replace

    def fsync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def moved(source: Path, target: Path) -> None:
        steps.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", moved)
    replace_file(tmp_path / "x", b"new", durable=durable)
    assert steps == (["file", "name", "folder"] if durable else ["name"])


def test_checkpoints_and_memory_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write_sealed(tmp_path / "x", "x", {}, {})
    assert len(synced) == 2
    Rounds(tmp_path, "seed,round\r\n1,0\r\n").close()
    assert len(synced) == 4


def test_a_file_is_as_readable_as_one_that_was_opened(tmp_path: Path) -> None:
    (tmp_path / "opened").write_text("x")
    replace_file(tmp_path / "replaced", "x")
    modes = [(tmp_path / name).stat().st_mode for name in ("opened", "replaced")]
    assert modes[0] == modes[1]


def test_two_processes_write_one_file_and_each_a_whole_one(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from pfl_flower.support.files import replace_file\n"
        "for _ in range(300): replace_file(Path(sys.argv[1]), sys.argv[2] * 100_000)"
    )
    path = tmp_path / "x"
    replace_file(path, "c" * 100_000)
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), which]) for which in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        text = path.read_text()
        assert len(text) == 100_000
        assert len(set(text)) == 1
        seen.add(text[0])
    assert [writer.returncode for writer in writers] == [0, 0]
    assert {"a", "b"} <= seen
    assert names(tmp_path) == ["x"]


def test_what_was_written_can_be_read(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.pt", {"a": torch.arange(3)})
    found = load_tensors(tmp_path / "x.pt")
    assert found is not None and found["a"].tolist() == [0, 1, 2]
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": (1, 2)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": "nan", "b": [1, 2]}
    assert read_sealed_names(tmp_path) == {"a"}


def read_sealed_names(folder: Path) -> set[str]:
    write_sealed(folder / "x.pfl", "x", {"n": 1}, {"a": np.zeros(2)})
    return set(read_sealed(folder / "x.pfl", "x").arrays)


def test_rows_of_several_seeds_in_one_file(tmp_path: Path) -> None:
    texts = "absurd:1;stray:2", 'a "quoted", odd one'
    for seed, text in enumerate(texts):
        rounds = Rounds(tmp_path / str(seed))
        rounds.write({"seed": seed, "round": 0, "norm_rho": 0.1, "notices": text})
        rounds.close()
    parts = [tmp_path / str(seed) / "rounds.csv" for seed in range(2)]
    write_together(tmp_path / "all.csv", parts)
    wanted = [row for part in parts for row in read_rounds(part)]
    assert read_rounds(tmp_path / "all.csv") == wanted
    with (tmp_path / "all.csv").open(newline="") as file:
        assert [row["notices"] for row in csv.DictReader(file)] == list(texts)
