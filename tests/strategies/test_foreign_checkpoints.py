"""Checkpoints whose seal is right and whose content is anybody's: one line, and nothing touched."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import resource
import shutil
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from pfl_flower.run import figures
from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import build_problem
from pfl_flower.run.rounds import all_columns
from pfl_flower.support.archives import read_arrays
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.files import MAGIC, VERSION, SealError, read_sealed, write_sealed
from strategies import recruiting
from strategies.checkpoint import CHECKPOINT_FILE, KIND, Checkpoint
from strategies.checkpoint_loading import Expected, load_checkpoint
from strategies.journal import part_file
from tests.support.killing import complete, counted
from tests.support.runs import configure

ROUNDS = 4
NAN, INF = math.nan, math.inf
Facts, Arrays = dict[str, Any], dict[str, np.ndarray]
Spoil = Callable[[Facts, Arrays], object]


@pytest.fixture(autouse=True, scope="module")
def hurry() -> Iterator[None]:
    """No waiting for nodes that are all there, and no pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recruiting, "SETTLE_SECONDS", 0.0)
        patch.setattr(figures, "run_figure", lambda *_: [])
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run with all that a checkpoint can hold: moments, the oracle's sum, a trajectory."""
    config = configure(
        rounds=ROUNDS,
        checkpoint_every=2,
        save_trajectory=True,
        server_optimizer="adam",
        server_lr=0.05,
        estimator="oracle",
        regularizer="l2",
        strategic_users="3-4",
        node_timeout=0.1,
        output_dir=str(tmp_path_factory.mktemp("finished")),
    )
    complete(config)
    return config


def load(config: RunConfig) -> Checkpoint | None:
    return load_checkpoint(config, Expected.of(build_problem(config), all_columns()))


def foreign(config: RunConfig, folder: Path, spoil: Spoil) -> RunConfig:
    """Return a configuration that goes on from a run's checkpoint, spoilt and resealed."""
    for path in config.folder().glob("checkpoint*"):
        shutil.copy(path, folder)
    good = read_sealed(folder / CHECKPOINT_FILE, KIND)
    facts, arrays = copy.deepcopy(good.facts), dict(good.arrays)
    spoil(facts, arrays)
    write_sealed(folder / CHECKPOINT_FILE, KIND, facts, arrays)
    return config.model_copy(update={"resume": str(folder), "rounds": ROUNDS + 2})


def fact(*path: Any, value: Any) -> Spoil:
    def spoil(facts: Facts, arrays: Arrays) -> None:
        place: Any = facts
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return spoil


def entry(name: str, value: Any, at: int = 0) -> Spoil:
    def spoil(facts: Facts, arrays: Arrays) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name].reshape(-1)[at] = value

    return spoil


def array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return lambda facts, arrays: arrays.update({name: change(arrays[name])})


def without(name: str) -> Spoil:
    return lambda facts, arrays: (facts if name in facts else arrays).pop(name)


DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]

WRONG: dict[str, tuple[Spoil, str]] = {
    "NaN in rho": (entry("rho", NAN), "rho is wrong (a number that is not finite)"),
    "infinity in rho": (entry("rho", -INF, 5), "rho is wrong (a number that is not finite)"),
    "rho of another length": (
        array("rho", lambda rho: rho[1:]),
        "rho is wrong ((5,) of float64: expected (6,) of float64)",
    ),
    "rho as a matrix": (array("rho", lambda rho: rho[None]), "rho is wrong ((1, 6) of float64"),
    "rho in single precision": (array("rho", np.float32), "rho is wrong ((6,) of float32"),
    "rho of the other endian": (array("rho", lambda r: r.astype(">f8")), "rho is wrong ((6,) of >"),
    "rho in words": (array("rho", lambda rho: rho.astype("U9")), "rho is wrong ((6,) of <U9"),
    "no rho": (without("rho"), "rho is absent"),
    "no moments": (without("optimizer/exp_avg"), "optimizer/exp_avg is absent"),
    "no second moments": (without("optimizer/exp_avg_sq"), "optimizer/exp_avg_sq is absent"),
    "no step": (without("optimizer/step"), "optimizer/step is absent"),
    "NaN in the moments": (entry("optimizer/exp_avg", NAN), "optimizer/exp_avg is wrong"),
    "negative squares": (
        entry("optimizer/exp_avg_sq", -1e-9),
        "optimizer/exp_avg_sq is wrong (a number outside 0 to inf)",
    ),
    "other steps": (
        entry("optimizer/step", 3),
        "optimizer/step is wrong (a number outside 4 to 4)",
    ),
    "another optimiser's": (
        lambda facts, arrays: arrays.update({"optimizer/momentum": arrays["rho"]}),
        "optimizer/momentum is nothing that this run keeps",
    ),
    "no honest sum": (without("honest-sum"), "honest-sum is absent"),
    "NaN in the honest sum": (entry("honest-sum", NAN), "honest-sum is wrong"),
    "a negative round": (fact("round", value=-3), "round is wrong"),
    "round 0": (fact("round", value=0), "round is wrong"),
    "an infinite round": (fact("round", value=INF), "round is wrong"),
    "no number as a round": (fact("round", value=NAN), "round is wrong"),
    "a list as a round": (fact("round", value=[4]), "round is wrong"),
    "a word as a round": (fact("round", value="4"), "round is wrong"),
    "true as a round": (fact("round", value=True), "round is wrong"),
    "half a round": (fact("round", value=3.5), "round is wrong"),
    "a round of 400 digits": (fact("round", value=10**400), "round is wrong"),
    "a round too many": (fact("round", value=5), "optimizer/step is wrong"),
    "more rounds than asked for": (fact("round", value=7), "rounds = 6: expected at least 7"),
    "a negative sum of steps": (fact("eta-sum", value=-1.0), "eta-sum is wrong"),
    "an infinite sum of steps": (fact("eta-sum", value=INF), "eta-sum is wrong"),
    "a list as a sum": (fact("eta-sum", value=[1.0]), "eta-sum is wrong"),
    "a user on two nodes": (
        fact("nodes", value=[[1000, [0, 1, 2, 3]], [1001, [3, 4]]]),
        "nodes is wrong (expected each of 5 users on one node)",
    ),
    "a user twice": (fact("nodes", value=[[1000, [0, 0, 1, 2, 3, 4]]]), "nodes is wrong"),
    "a user nowhere": (fact("nodes", value=[[1000, [0, 1, 2, 4]]]), "nodes is wrong"),
    "a user too many": (fact("nodes", value=[[1000, [0, 1, 2, 3, 4, 5]]]), "nodes is wrong"),
    "a negative user": (fact("nodes", 0, 1, 0, value=-1), "nodes.0.1.0 is wrong"),
    "an endless user": (fact("nodes", 0, 1, 0, value=2**80), "nodes.0.1.0 is wrong"),
    "users in any order": (
        fact("nodes", value=[[1000, [1, 0, 2, 3]], [1001, [4]]]),
        "nodes is wrong (expected the users of each node in ascending order)",
    ),
    "a node twice": (
        fact("nodes", value=[[1000, [0, 1, 2, 3]], [1000, [4]]]),
        "nodes is wrong (a node twice)",
    ),
    "a node of nobody": (
        fact("nodes", value=[[1000, [0, 1, 2, 3, 4]], [1001, []]]),
        "nodes is wrong",
    ),
    "a negative node": (fact("nodes", 0, 0, value=-1), "nodes.0.0 is wrong"),
    "a node in words": (fact("nodes", 0, 0, value="1000"), "nodes.0.0 is wrong"),
    "nodes as a table": (fact("nodes", value={"1000": [0, 1, 2, 3, 4]}), "nodes is wrong"),
    "a node alone": (fact("nodes", value=[1000]), "nodes.0 is wrong"),
    "lists without end": (fact("nodes", value=DEEP), "facts is wrong (Invalid JSON"),
    "a strategic user too many": (
        fact("strategic", value=[3, 4, 9]),
        "strategic is wrong (user 9: expected < 5)",
    ),
    "a strategic user twice": (fact("strategic", value=[3, 4, 4]), "strategic is wrong"),
    "strategic as a word": (fact("strategic", value="all"), "strategic is wrong"),
    "no roster": (without("nodes"), "nodes is absent"),
    "accepted in a round to come": (
        entry("last-accepted", 5),
        "last-accepted is wrong (a number outside 0 to 4)",
    ),
    "accepted before all rounds": (entry("last-accepted", -1), "last-accepted is wrong"),
    "answered before all rounds": (entry("answered", -2), "answered is wrong"),
    "accepted and never answered": (entry("answered", 0), "answered is wrong (a user who"),
    "too few users": (array("answered", lambda a: a[:-1]), "answered is wrong ((4,) of int64"),
    "rounds as floats": (array("last-accepted", np.float64), "last-accepted is wrong"),
    "a report of an honest user": (entry("strategic-users", 2), "strategic-users is wrong"),
    "reports in another order": (
        array("strategic-users", lambda users: users[::-1].copy()),
        "strategic-users is wrong (expected strategic users, ascending)",
    ),
    "two reports of a user": (entry("strategic-users", 4), "strategic-users is wrong"),
    "a report of nobody": (entry("strategic-users", 5), "strategic-users is wrong"),
    "a report outside GRAD": (
        entry("strategic-rows", 1e3),
        "strategic-rows is wrong (a report that is not plausible)",
    ),
    "NaN in a report": (entry("strategic-rows", NAN), "strategic-rows is wrong"),
    "a report too many": (
        array("strategic-rows", lambda rows: np.concatenate([rows, rows])),
        "strategic-rows is wrong ((4, 6) of float64: expected (2, 6) of float64)",
    ),
    "a report of no round": (entry("strategic-rounds", 0), "strategic-rounds is wrong"),
    "users as one number": (
        array("strategic-users", lambda users: users[0]),
        "strategic-users is wrong (() of int64",
    ),
    "heard from nobody": (
        fact("attendance", "heard", value=[4, 77]),
        "attendance is wrong (user 77: expected < 5)",
    ),
    "another reason": (
        fact("attendance", "unheard", value=[[4, {"\x1b[31mred": 1}]]),
        "attendance is wrong (no reason is called \\x1b[31mred)",
    ),
    "a reason that was never": (
        fact("attendance", "unheard", value=[[4, {"no-reply": 0}]]),
        "attendance.unheard.0.1.no-reply is wrong",
    ),
    "a long story": (
        fact("attendance", "lost", value=[[1, 2, "x" * 100_000]]),
        "attendance.lost.0.2 is wrong",
    ),
    "lost in a round to come": (
        fact("attendance", "lost", value=[[1, 9, "none"]]),
        "attendance is wrong (round 9: expected <= 4)",
    ),
    "attendance as a list": (fact("attendance", value=[]), "attendance is wrong"),
    "no attendance": (without("attendance"), "attendance is absent"),
    "one more fact": (fact("more", value=1), "more is wrong"),
    "a configuration in a list": (fact("config", value=[]), "config is wrong"),
    "another configuration": (fact("config", "lam", value=2.0), "it is of another configuration"),
    "NaN in the configuration": (fact("config", "lam", value=NAN), "it is of another"),
    "a key in a list": (fact("config", "lam", value=[1.0]), "config.lam"),
    "a journal elsewhere": (
        fact("journal", "name", value="../../../etc/passwd"),
        "journal.name is wrong",
    ),
    "a journal that is not there": (
        fact("journal", "name", value="01234567"),
        "checkpoint-01234567.rounds, beside it, cannot be read (No such file or directory)",
    ),
    "a journal without end": (fact("journal", "rounds", "size", value=2**62), "checkpoint-"),
    "a journal of negative size": (
        fact("journal", "rounds", "size", value=-1),
        "journal.rounds.size is wrong",
    ),
    "another journal": (fact("journal", "rounds", "digest", value="0" * 64), "checkpoint-"),
    "no checksum": (fact("journal", "rho", "digest", value="short"), "journal.rho.digest is wrong"),
    "a trajectory cut short": (fact("journal", "rho", "size", value=48), "checkpoint-"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_one_line(name: str, finished: RunConfig, tmp_path: Path) -> None:
    spoil, message = WRONG[name]
    config = foreign(finished, tmp_path, spoil)
    before = contents(finished.folder())
    with pytest.raises(ConfigError) as caught:
        complete(config)
    said = str(caught.value)
    start = "" if message.startswith("rounds =") else f"resume = {tmp_path}: {CHECKPOINT_FILE}: "
    assert said.startswith(start + message), said
    assert said.isprintable() and len(said) <= 400 + len(str(tmp_path))
    assert contents(finished.folder()) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(config: RunConfig, folder: Path, change: Callable[[bytes], bytes]) -> RunConfig:
    """Return one whose checkpoint's rounds are changed, and their checksum with them."""

    def spoil(facts: Facts, arrays: Arrays) -> None:
        path = part_file(folder, facts["journal"]["name"], "rounds")
        new = change(path.read_bytes())
        path.write_bytes(new)
        digest = hashlib.sha256(new).hexdigest()
        facts["journal"]["rounds"] = {"size": len(new), "digest": digest}

    return foreign(config, folder, spoil)


STORIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda text: b"", "no table"),
    "no text": (lambda text: b"\xff" + text, "'utf-8' codec can't decode"),
    "one row less": (lambda text: text[: text.rindex(b"\r\n1,4,") + 2], "4 rows: expected 5"),
    "one row twice": (lambda text: text + text[text.rindex(b"\r\n1,4,") + 2 :], "6 rows"),
    "another seed": (lambda text: text.replace(b"\r\n1,2,", b"\r\n7,2,"), "row 2 is of seed 7"),
    "rounds in disorder": (lambda text: text.replace(b"\r\n1,2,", b"\r\n1,3,"), "row 2 is of"),
    "another column": (lambda text: text.replace(b"norm_rho", b"norm"), "other columns"),
    "a formula": (lambda text: text.replace(b"\r\n1,3,", b"\r\n1,3,=1+1"), "round 3, eta: =1+1"),
    "a cell too many": (lambda text: text.replace(b"\r\n1,3,", b"\r\n1,3,,"), "a row that is not"),
    "other line ends": (lambda text: text.replace(b"\r\n", b"\n"), "a row that is not written so"),
}


@pytest.mark.parametrize("name", STORIES)
def test_rounds_that_nobody_wrote_are_one_line(
    name: str, finished: RunConfig, tmp_path: Path
) -> None:
    change, message = STORIES[name]
    config = told(finished, tmp_path, change)
    with pytest.raises(ConfigError) as caught:
        complete(config)
    assert f".rounds is wrong ({message}" in str(caught.value)


def test_words_from_elsewhere_are_no_formulas(finished: RunConfig, tmp_path: Path) -> None:
    """In the columns of words a cell is one that this project would have written."""

    def formula(text: bytes) -> bytes:
        lines = text.split(b"\r\n")
        cells = lines[3].split(b",")
        cells[lines[0].split(b",").index(b"notices")] = b"=HYPERLINK()"
        return b"\r\n".join([*lines[:3], b",".join(cells), *lines[4:]])

    with pytest.raises(ConfigError, match="round 2, notices: =HYPERLINK"):
        complete(told(finished, tmp_path, formula))


def test_the_command_line_ends_with_2_and_keeps_what_is_there(
    finished: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.__main__ import NO_VERDICT, main

    command = ["run", "digits-l2", "--output", str(tmp_path / "out"), "--set"]
    given = ["rounds=2", "checkpoint-every=1", "points-per-user=20", "equilibrium=false"]
    assert main([*command, *given]) == 0
    (folder,) = {path.parent for path in (tmp_path / "out").rglob(CHECKPOINT_FILE)}
    before = {path: text for path, text in contents(folder).items() if path.name != "run.log"}
    good = read_sealed(folder / CHECKPOINT_FILE, KIND)
    foreign_file = tmp_path / "foreign.pfl"
    write_sealed(foreign_file, KIND, {**good.facts, "round": math.inf}, good.arrays)
    capsys.readouterr()
    code = main([*command, *given, f"resume={foreign_file}"])
    assert code == NO_VERDICT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"resume = {foreign_file}: foreign.pfl: round is wrong")
    after = {path: text for path, text in contents(folder).items() if path.name != "run.log"}
    assert after == before


SPECIAL = (NAN, INF, -INF, -1, 0, 1, 2**31, 2**63, -(2**63), 10**30, 1e308, True, None, "", "\n")


def places(thing: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to everything in nested facts."""
    steps = thing.items() if isinstance(thing, dict) else enumerate(thing)
    for step, inner in list(steps):
        yield (*path, step)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, step))


values = st.one_of(
    st.sampled_from(SPECIAL),
    st.integers(-3, 12),
    st.floats(),
    st.text(max_size=9),
    st.lists(st.integers(-2, 6), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


def changed_facts(draw: Any, facts: Facts) -> None:
    path = draw(st.sampled_from(list(places(facts))))
    place: Any = facts
    for step in path[:-1]:
        place = place[step]
    if draw(st.integers(0, 9)) == 0:
        del place[path[-1]]
    else:
        place[path[-1]] = draw(values)


def changed_arrays(draw: Any, arrays: Arrays) -> None:
    name = draw(st.sampled_from(sorted(arrays)))
    kind = draw(st.sampled_from(("number", "number", "number", "drop", "shape", "dtype", "swap")))
    if kind == "number":
        flat = arrays[name].copy()
        if flat.size:
            number = draw(st.sampled_from((NAN, INF, -INF, -1.0, 1e308, 1e-320)) | st.floats(-9, 9))
            with np.errstate(all="ignore"):
                flat.reshape(-1)[draw(st.integers(0, flat.size - 1))] = np.array(number).astype(
                    flat.dtype
                )
        arrays[name] = flat
    elif kind == "drop":
        del arrays[name]
    elif kind == "shape":
        arrays[name] = np.resize(arrays[name], draw(st.lists(st.integers(0, 7), max_size=3)))
    elif kind == "dtype":
        dtype = draw(st.sampled_from("f2 f4 >f8 i8 i4 u1 c16 U3 S2 ? M8[s]".split()))
        with np.errstate(all="ignore"):
            arrays[name] = np.zeros(arrays[name].shape, dtype)
    else:
        other = draw(st.sampled_from(sorted(arrays)))
        arrays[name], arrays[other] = arrays[other], arrays[name]


@pytest.mark.parametrize("tries", [300, pytest.param(4000, marks=pytest.mark.slow)])
def test_any_field_may_hold_anything(tries: int, finished: RunConfig, tmp_path: Path) -> None:
    """A changed checkpoint is one line, or one with which the run comes to its end."""
    met = {"refused": 0, "taken": 0}

    @seed(1)
    @settings(
        max_examples=tries, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def judge(data: st.DataObject) -> None:
        def spoil(facts: Facts, arrays: Arrays) -> None:
            for _ in range(data.draw(st.integers(1, 2))):
                if data.draw(st.booleans()):
                    changed_facts(data.draw, facts)
                elif arrays:
                    changed_arrays(data.draw, arrays)

        config = foreign(finished, tmp_path, spoil)
        try:
            found = load(config)
        except ConfigError as error:
            met["refused"] += 1
            assert str(error).isprintable()
            return
        met["taken"] += 1
        assert found is not None and bool(found.server.rho.isfinite().all())
        if met["taken"] <= tries // 30:
            out = config.model_copy(update={"output_dir": str(tmp_path / "out")})
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            assert np.isfinite(complete(out)).all()

    judge()
    assert met["refused"] >= 0.5 * tries
    assert met["taken"] >= 0.02 * tries


def sealed_bytes(body: bytes) -> bytes:
    return f"{MAGIC} {KIND} {VERSION} {hashlib.sha256(body).hexdigest()}\n".encode() + body


def npz(compression: int, **members: bytes) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return body.getvalue()


def npy(shape: tuple[int, ...], numbers: bytes, descr: str = "<f8") -> bytes:
    stream = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + numbers


def overlapping() -> bytes:
    """Return an archive of a megabyte whose 300 members hold each other: 300 megabytes."""
    size, count = 2**20, 300
    inner, starts = npy((size,), bytes(size), "|u1"), []
    entries = b""
    for number in reversed(range(count)):
        name = f"{number:04d}.npy".encode()
        same = struct.pack("<IIIHH", zlib.crc32(inner), len(inner), len(inner), len(name), 0)
        local = b"PK\x03\x04" + struct.pack("<HHHHH", 20, 0, 0, 0, 33) + same + name
        starts.append((number, same, name, len(local) + len(inner)))
        inner = local + inner
        if number:
            inner = npy((len(inner),), inner, "|u1")
    for _, same, name, distance in starts:
        fields = struct.pack("<HHHII", 0, 0, 0, 0, len(inner) - distance)
        entries += (
            b"PK\x01\x02" + struct.pack("<HHHHHH", 20, 20, 0, 0, 0, 33) + same + fields + name
        )
    sizes = struct.pack("<HHHHIIH", 0, 0, count, count, len(entries), len(inner), 0)
    return inner + entries + b"PK\x05\x06" + sizes


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "little that becomes much": lambda: npz(zipfile.ZIP_DEFLATED, rho=npy((2**24,), bytes(2**27))),
    "compressed and no smaller": lambda: npz(
        zipfile.ZIP_DEFLATED, rho=npy((10**4,), np.random.default_rng(1).bytes(8 * 10**4))
    ),
    "a header of a terabyte": lambda: npz(zipfile.ZIP_STORED, rho=npy((2**37,), bytes(64))),
    "a header of no end": lambda: npz(zipfile.ZIP_STORED, rho=npy((10**30, 0), b"")),
    "a header less than nothing": lambda: npz(zipfile.ZIP_STORED, rho=npy((-1, -1), bytes(8))),
    "objects": lambda: npz(zipfile.ZIP_STORED, rho=npy((1,), bytes(8), "|O")),
    "members that overlap": overlapping,
    "no array": lambda: npz(zipfile.ZIP_STORED, rho=b"rho"),
    "an array of another format": lambda: npz(
        zipfile.ZIP_STORED, rho=b"\x93NUMPY\x09\x00" + b" " * 99
    ),
    "a header that is a program": lambda: npz(
        zipfile.ZIP_STORED, rho=b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 117 + b"\n"
    ),
    "an archive of nothing": lambda: b"PK\x05\x06" + bytes(18),
    "no archive": lambda: b"PK",
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_nothing_is_larger_inside_than_outside(name: str, tmp_path: Path) -> None:
    """With room for little more than the file, each is refused: MemoryError would show."""
    path = tmp_path / "x.pfl"
    body = ARCHIVES[name]()
    path.write_bytes(sealed_bytes(body))
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * len(body) + 2**26, before[1]))
    try:
        with pytest.raises(SealError, match=r"^it is not what it says"):
            read_sealed(path, KIND)
        if name != "an archive of nothing":
            with pytest.raises(ValueError):
                read_arrays(body)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_name_is_said_once() -> None:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("rho.npy", npy((1,), bytes(8)))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("rho.npy", npy((1,), bytes(8)))
    with pytest.raises(ValueError, match="twice"):
        read_arrays(body.getvalue())


def test_facts_without_end_are_refused(tmp_path: Path) -> None:
    text = b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    body = io.BytesIO()
    np.savez(body, facts=np.frombuffer(text, np.uint8))
    (tmp_path / "x").write_bytes(sealed_bytes(body.getvalue()))
    with pytest.raises(SealError, match="it is not what it says"):
        read_sealed(tmp_path / "x", KIND)


def test_a_file_that_is_larger_than_it_can_be_is_not_read(tmp_path: Path) -> None:
    """Its line is right, and a terabyte follows: a hole, which takes no room on the disk."""
    path = tmp_path / "x.pfl"
    with path.open("wb") as file:
        file.write(sealed_bytes(b""))
        file.truncate(2**40)
    with pytest.raises(SealError, match="it has 1,099,511,627,776 bytes: expected at most 1,000"):
        read_sealed(path, KIND, most=1000)


def test_what_has_no_end_is_not_read(finished: RunConfig, tmp_path: Path) -> None:
    """A device, and pipes: one without a writer, one whose first line is right."""
    silent, talking = tmp_path / "silent", tmp_path / "talking"
    for path in (silent, talking):
        os.mkfifo(path)
    reader = os.open(talking, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(talking, os.O_WRONLY)
    os.write(writer, sealed_bytes(b""))
    found = {}

    def ask() -> None:
        for path in (Path("/dev/zero"), silent, talking, tmp_path):
            try:
                read_sealed(path, KIND)
            except SealError as error:
                found[path] = str(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout=30)
    os.close(reader)
    os.close(writer)
    regular = "it cannot be read (it is not a regular file)"
    assert found == {
        Path("/dev/zero"): regular,
        silent: regular,
        talking: regular,
        tmp_path: "it cannot be read (Is a directory)",
    }
    config = finished.model_copy(update={"resume": "/dev/zero"})
    with pytest.raises(ConfigError, match=r"^resume = /dev/zero: zero: it cannot be read"):
        load(config)


def written(folder: Path, rounds: int) -> int:
    """Return how many bytes of checkpoints and journals a run puts on the disk."""
    total, known = [0], dict[int, int]()

    def count(number: int, descriptor: int) -> None:
        found, name = os.fstat(descriptor), os.readlink(f"/proc/self/fd/{descriptor}")
        # A checkpoint is a new file each time, whose number may be a removed one's.
        old = known.get(found.st_ino, 0) if name.endswith((".rounds", ".rho")) else 0
        if "checkpoint" in Path(name).name:
            total[0] += found.st_size - old
            known[found.st_ino] = found.st_size

    config = configure(
        rounds=rounds, checkpoint_every=1, save_trajectory=True, output_dir=str(folder)
    )
    with counted(count):
        complete(config, nodes=1)
    return total[0]


def test_bytes_written_grow_with_the_rounds_and_not_with_their_square(tmp_path: Path) -> None:
    few, many = (written(tmp_path / str(rounds), rounds) for rounds in (20, 80))
    assert few > 20 * 1000
    assert many <= 4.1 * few


def test_a_journal_serves_until_the_next_one_does(finished: RunConfig, tmp_path: Path) -> None:
    """Each start has one of its own; one is left, with rounds.csv to the byte."""
    config = finished.model_copy(
        update={"output_dir": str(tmp_path), "resume": str(finished.folder())}
    )
    for rounds in (6, 8):
        complete(config.model_copy(update={"rounds": rounds}))
        config = config.model_copy(update={"resume": "auto"})
    names = sorted(path.name for path in config.folder().glob("checkpoint*"))
    assert len(names) == 3 and names[-1] == CHECKPOINT_FILE
    facts = json.loads(json.dumps(read_sealed(config.folder() / CHECKPOINT_FILE, KIND).facts))
    path = part_file(config.folder(), facts["journal"]["name"], "rounds")
    assert path.read_bytes() == (config.folder() / "rounds.csv").read_bytes()
    kept = (finished.folder() / "rounds.csv").read_bytes()
    assert path.read_bytes().startswith(kept) and len(path.read_bytes()) > len(kept)
