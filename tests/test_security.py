"""Nothing that comes from outside is unpickled or run, in the code as written and when tried."""

from __future__ import annotations

import ast
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from pfl_flower.aggregation.reports import Reason, ReportError
from pfl_flower.run.attack_plans import plan
from pfl_flower.run.problem import build_problem
from pfl_flower.run.results import LIMIT_FILE
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.tensor_files import load_tensors
from pfl_flower.transport.broadcasts import RHO, unpack_broadcast
from pfl_flower.transport.records import ARRAYS, CONFIG
from pfl_flower.transport.training_replies import GRADIENTS, unpack_report
from tests.support.runs import CPU, configure
from tests.test_imports import MODULES, ROOT, imported

UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
OUR_OWN_PROCESSES = {
    "pfl_flower/support/workers.py": {"pickle", "cloudpickle"},
    "pfl_flower/run/grid.py": {"cloudpickle"},
}
"""A sweep's tasks and results go over pipes between processes that it starts itself, never to or
from a file, a node or a network; in ``grid`` an object's bytes are hashed and never read."""
REQUIRED = {"np.load": ("allow_pickle", False), "torch.load": ("weights_only", True)}
"""Readers of files that unpickle unless told not to."""
RUNNERS = {"eval", "exec", "compile", "__import__", "os.system", "yaml.load", "pandas.read_pickle"}


def faults(source: str) -> list[str]:
    """Return the calls in a file that would run what they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).replace("numpy.", "np.")
        said = {word.arg: word.value for word in node.keywords}
        if name in RUNNERS:
            found.append(name)
        if name in REQUIRED:
            key, value = REQUIRED[name]
            given = said.get(key)
            if not (isinstance(given, ast.Constant) and given.value is value):
                found.append(name)
    return found


@pytest.mark.parametrize("path", MODULES.values(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_ours_unpickles_or_evaluates(path: Path) -> None:
    assert not faults(path.read_text())
    allowed = OUR_OWN_PROCESSES.get(path.relative_to(ROOT).as_posix(), set())
    assert imported(path) & UNPICKLERS == allowed


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("np.load(p)", ["np.load"]),
        ("numpy.load(p, allow_pickle=True)", ["np.load"]),
        ("np.load(p, allow_pickle=False)", []),
        ("torch.load(p, map_location='cpu')", ["torch.load"]),
        ("torch.load(p, weights_only=flag)", ["torch.load"]),
        ("torch.load(p, weights_only=True)", []),
        ("eval(text)", ["eval"]),
        ("network.eval()", []),
    ],
)
def test_the_search_finds_what_it_looks_for(source: str, found: list[str]) -> None:
    assert faults(source) == found


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def trapped(mark: Path) -> bytes:
    """Return an .npy file whose only element is a trap."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([[Trap(mark)]], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_the_trap_works(mark: Path) -> None:
    np.load(io.BytesIO(trapped(mark)), allow_pickle=True)
    assert mark.exists()


def test_a_reply_with_pickled_objects_is_malformed_and_does_not_run(mark: Path) -> None:
    array = Array("object", (1, 1), "numpy.ndarray", trapped(mark))
    config = ConfigRecord({"round": 1, "users": [0]})
    content = RecordDict({ARRAYS: ArrayRecord({GRADIENTS: array}), CONFIG: config})
    with pytest.raises(ReportError) as caught:
        unpack_report(content, max_bytes=10_000)
    assert caught.value.reason is Reason.MALFORMED
    assert not mark.exists()


def test_a_broadcast_with_pickled_objects_does_not_run(mark: Path) -> None:
    array = Array("object", (1, 1), "numpy.ndarray", trapped(mark))
    config = ConfigRecord(
        {"round": 1, "users": [0], "last-accepted": [0], "eta": 0.1, "eta-sum": 0.0}
    )
    content = RecordDict({ARRAYS: ArrayRecord({RHO: array}), CONFIG: config})
    with pytest.raises(ValueError, match="allow_pickle"):
        unpack_broadcast(content, CPU)
    assert not mark.exists()


def test_a_folder_of_another_run_does_not_run(mark: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / LIMIT_FILE, "w") as archive:
        archive.writestr("rho.npy", trapped(mark))
        archive.writestr("gradient.npy", trapped(mark))
    problem = build_problem(configure(attack="model", attack_model=str(tmp_path)))
    with pytest.raises(ConfigError, match="attack-model"):
        plan(problem, 4)
    assert not mark.exists()


def test_a_file_of_tensors_does_not_run(mark: Path, tmp_path: Path) -> None:
    path = tmp_path / "kept.pt"
    torch.save({"weights": Trap(mark)}, path)
    assert load_tensors(path) is None
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()
