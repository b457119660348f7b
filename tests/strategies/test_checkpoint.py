"""A server that is killed goes on from its last checkpoint as if nothing had been."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.__main__ import NO_VERDICT, main
from pfl_flower.run import figures
from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import build_problem
from pfl_flower.run.rounds import all_columns, read_rounds
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.files import MAGIC, VERSION, read_sealed, write_sealed
from pfl_flower.transport import inprocess
from strategies import recruiting
from strategies.checkpoint import CHECKPOINT_FILE, KIND
from strategies.checkpoint_loading import Expected, load_checkpoint
from tests.support.killing import complete, counted, cut, last_round
from tests.support.runs import configure

EVERY = 3
ROUNDS = 11
RUNS: dict[str, dict[str, Any]] = {
    "l2": {"regularizer": "l2"},
    "squared l2": {},
    "Adam and the oracle": {
        "server_optimizer": "adam",
        "server_lr": 0.05,
        "estimator": "oracle",
        "regularizer": "smooth-l2",
    },
    "single steps of Adam": {"local_solver": "adam", "batch_size": 8, "server_lr": 0.05},
    "poisoned data": {"attack": "data", "local_solver": "adam", "server_lr": 0.05},
    "relabelled data": {"attack": "label-flip", "local_solver": "adam", "server_lr": 0.05},
    "surrogates": {"attack": "min-max", "local_solver": "adam", "server_lr": 0.05},
    "some users asked": {"participation": 0.6, "local_solver": "adam", "server_lr": 0.05},
}


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for nodes that are all there, and no pictures."""
    monkeypatch.setattr(recruiting, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(figures, "run_figure", lambda *_: [])


def config_in(folder: Path, **changes: Any) -> RunConfig:
    given = {
        "rounds": ROUNDS,
        "checkpoint_every": EVERY,
        "save_trajectory": True,
        "node_timeout": 0.1,
        **changes,
    }
    return configure(output_dir=str(folder), **given)


def again(config: RunConfig, **changes: Any) -> RunConfig:
    return config.model_copy(update={"resume": "auto", **changes})


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("name", RUNS)
def test_killed_at_any_moment_it_ends_the_same(name: str, nodes: int, tmp_path: Path) -> None:
    """Killed four times while it writes a file, halfway or whole, on however many nodes."""
    with counted(lambda count, descriptor: None) as files:
        whole = complete(config_in(tmp_path / "whole", **RUNS[name]), nodes)
    draw = random.Random(f"{name} {nodes}")
    config = config_in(tmp_path / "cut", **RUNS[name])
    killed = 0
    for turn in range(4):
        at = draw.randint(1, files[0] // 2)
        killed += cut(again(config), at, half=turn % 2 == 0, nodes=nodes)
        done = last_round(config.folder())
        saved = load(again(config))
        assert done - (saved.server.round if saved else 0) <= EVERY
    assert killed >= 3
    resumed = complete(again(config), nodes)
    assert resumed.shape == whole.shape
    assert np.abs(resumed - whole).max() <= 1e-9
    assert [row["round"] for row in read_rounds(config.folder() / "rounds.csv")] == list(
        range(ROUNDS + 1)
    )
    assert json.loads((config.folder() / "summary.json").read_text())["passed"]


def load(config: RunConfig):  # type: ignore[no-untyped-def]
    return load_checkpoint(config, Expected.of(build_problem(config), all_columns()))


def test_every_file_of_a_killed_run_is_whole(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    for at in (5, 24, 31):
        assert cut(again(config), at, half=True)
        for path in config.folder().rglob("*.pfl"):
            if not path.name.startswith("."):
                read_sealed(path, KIND if path.name == CHECKPOINT_FILE else "memory")


def interrupted(folder: Path, **changes: Any) -> RunConfig:
    """Return the configuration of a run killed after its second checkpoint."""
    config = config_in(folder, **changes)
    at = 0
    with counted(lambda count, descriptor: None) as files:
        complete(config_in(folder / "count", **{**changes, "rounds": 2 * EVERY + 1}))
        at = files[0]
    assert cut(config, at)
    assert load(again(config)).server.round == 2 * EVERY
    return config


def strategic_files(config: RunConfig) -> list[Path]:
    files = (config.folder() / "state").glob("*.pfl")
    return [path for path in files if 4 in read_sealed(path, "memory").facts["users"]]


def test_without_the_attackers_memory_rho_goes_elsewhere(tmp_path: Path) -> None:
    """The next round moves rho by units; with the memory, by nothing."""
    changes = {"lam": 1.0, "points_per_user": "400", "server_lr_factor": 2.0}
    whole = complete(config_in(tmp_path / "whole", **changes))
    moved = []
    for lost in (False, True):
        config = interrupted(tmp_path / str(lost), **changes)
        assert strategic_files(config)
        for path in strategic_files(config) if lost else ():
            path.unlink()
        rho = complete(again(config))
        moved.append(np.linalg.norm(rho - whole, axis=1)[2 * EVERY + 1])
    assert moved[0] <= 1e-9
    assert moved[1] > 1


@pytest.mark.parametrize("nodes", [1, 2, 5])
@pytest.mark.parametrize("name", ["single steps of Adam", "squared l2"])
def test_other_nodes_take_up_where_those_before_were(
    name: str, nodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory belongs to users: another number of nodes, with other ids, finds it."""
    whole = complete(config_in(tmp_path / "whole", **RUNS[name]))
    config = interrupted(tmp_path / "cut", **RUNS[name])
    monkeypatch.setattr(inprocess, "FIRST_NODE_ID", 2000)
    assert np.abs(complete(again(config), nodes) - whole).max() <= 1e-9


def test_users_go_to_the_node_that_has_their_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node has a folder of its own; they come back in another order."""

    def private(order: list[int]) -> dict[int, dict[str, str]]:
        return {place: {"state-dir": str(tmp_path / f"node-{own}")} for place, own in
                enumerate(order)}  # fmt: skip

    changes = RUNS["single steps of Adam"]
    whole = complete(config_in(tmp_path / "whole", **changes), 3)
    config = config_in(tmp_path / "cut", **changes)
    assert cut(config, 60, nodes=3, node_configs=private([0, 1, 2]))
    assert load(again(config)).server.round >= EVERY
    monkeypatch.setattr(inprocess, "FIRST_NODE_ID", 2000)
    resumed = complete(again(config), 3, node_configs=private([2, 0, 1]))
    assert np.abs(resumed - whole).max() <= 1e-9


@pytest.mark.parametrize("changes", [{"checkpoint_every": 0}, {"chunk_users": 2}])
def test_more_rounds_can_be_asked_of_a_finished_run(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Without further checkpoints, or holding fewer users' data at a time."""
    whole = complete(config_in(tmp_path / "whole"))
    config = config_in(tmp_path / "short", rounds=5)
    complete(config)
    longer = complete(again(config, rounds=ROUNDS, **changes))
    assert np.abs(longer - whole).max() <= 1e-9


def test_a_fresh_run_takes_nothing_from_an_earlier_one(tmp_path: Path) -> None:
    config = config_in(tmp_path, **RUNS["single steps of Adam"])
    first, second = complete(config), complete(config)
    assert np.array_equal(first, second)


def test_clients_keep_what_the_last_checkpoint_needs_and_no_more(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    complete(config)
    rounds = sorted(path.name[6:14] for path in (config.folder() / "state").iterdir())
    assert rounds == [f"{round:08d}" for round in (9, 9, 10, 10, 11, 11)]


class Bomb:
    """Unpickled, it would kill this process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.kill, (os.getpid(), signal.SIGKILL)


def _sealed(body: bytes, kind: str = KIND, version: object = VERSION) -> bytes:
    import hashlib

    digest = hashlib.sha256(body).hexdigest()
    return f"{MAGIC} {kind} {version} {digest}\n".encode() + body


def _npz(**arrays: Any) -> bytes:
    body = io.BytesIO()
    np.savez(body, **arrays)
    return body.getvalue()


def _torch_file(_: bytes) -> bytes:
    body = io.BytesIO()
    torch.save({"rho": torch.zeros(6)}, body)
    return body.getvalue()


def _flipped(position: float) -> Callable[[bytes], bytes]:
    def flip(good: bytes) -> bytes:
        at = int(position * (len(good) - 1))
        return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]

    return flip


def _body(good: bytes) -> bytes:
    return good.partition(b"\n")[2]


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda good: b"", "it is not a checkpoint"),
    "text": (lambda good: b"rho = 1\n", "it is not a checkpoint"),
    "a pickle": (lambda good: pickle.dumps(Bomb()), "it is not a checkpoint"),
    "torch's": (_torch_file, "it is not a checkpoint"),
    "a client's memory": (lambda good: _sealed(_body(good), "memory"), "it is not a checkpoint"),
    "of another version": (lambda good: _sealed(_body(good), version=3), "it is of version 3"),
    "of 0.1": (
        lambda good: _sealed(_body(good), version=1),
        "it is of version 1, and this pfl-flower reads version 2; go on with the pfl-flower that "
        "wrote it, or start afresh",
    ),
    "cut": (lambda good: good[:-1], "it is damaged"),
    "half": (lambda good: good[: len(good) // 2], "it is damaged"),
    "longer": (lambda good: good + b"\0", "it is damaged"),
    "first bit": (_flipped(0.0), "it is not a checkpoint"),
    "middle bit": (_flipped(0.5), "it is damaged"),
    "last bit": (_flipped(1.0), "it is damaged"),
    "sealed text": (lambda good: _sealed(b"rho"), "it is not what it says"),
    "sealed pickle": (lambda good: _sealed(pickle.dumps(Bomb())), "it is not what it says"),
    "sealed objects": (
        lambda good: _sealed(_npz(facts=np.array([Bomb()], dtype=object))),
        "it is not what it says",
    ),
    "sealed list": (
        lambda good: _sealed(_npz(facts=np.frombuffer(b"[1]", np.uint8))),
        "it is not what it says",
    ),
    "sealed nothing": (
        lambda good: _sealed(_npz(facts=np.frombuffer(b"{}", np.uint8))),
        "round is absent",
    ),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = config_in(tmp_path_factory.mktemp("finished"))
    complete(config)
    return config


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_clear_line(name: str, finished: RunConfig, tmp_path: Path) -> None:
    spoil, message = BAD[name]
    good = (finished.folder() / CHECKPOINT_FILE).read_bytes()
    path = tmp_path / "some.pfl"
    path.write_bytes(spoil(good))
    rows = (finished.folder() / "rounds.csv").read_bytes()
    with pytest.raises(ConfigError, match=f"^resume = {path}: some.pfl: {message}") as caught:
        complete(again(finished, resume=str(path)))
    assert "\n" not in str(caught.value)
    assert (finished.folder() / "rounds.csv").read_bytes() == rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lam": 2.0}, "it is of another configuration, lam = 1.0 there and 2.0 here"),
        ({"seed": 2}, "it is of another configuration, seed = 1 there and 2 here"),
        ({"name": "other"}, "it is of another configuration, name = "),
        ({"rounds": 7}, "rounds = 7: expected at least 11"),
        ({"resume": "/nowhere"}, "resume = /nowhere: nowhere: it cannot be read"),
    ],
)
def test_another_configuration_is_refused(
    changes: dict[str, Any], message: str, finished: RunConfig
) -> None:
    config = finished.model_copy(update={"resume": str(finished.folder()), **changes})
    with pytest.raises(ConfigError) as caught:
        load(config)
    assert message in str(caught.value)


def test_the_command_line_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.pfl"
    path.write_bytes(b"nothing")
    code = main(["run", "digits-l2", "--output", str(tmp_path), "--set", f"resume={path}"])
    assert code == NO_VERDICT
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"resume = {path}: bad.pfl: it is not a checkpoint of pfl-flower"]


def test_a_sealed_file_says_what_it_was_given(tmp_path: Path) -> None:
    arrays = {"a/b": np.arange(3.0), "scalar": np.array(7), "c": np.zeros((0, 2), np.float32)}
    write_sealed(tmp_path / "x", "thing", {"n": 1, "inf": float("inf")}, arrays)
    found = read_sealed(tmp_path / "x", "thing")
    assert found.facts == {"n": 1, "inf": float("inf")}
    for name, value in arrays.items():
        assert found.arrays[name].dtype == value.dtype
        assert np.array_equal(found.arrays[name], value)
