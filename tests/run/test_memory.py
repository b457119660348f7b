"""What this machine's memory cannot hold is refused before it is filled."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pfl_flower as pfl
from clients.honest import HonestClient
from experiments.__main__ import main
from pfl_flower.run import memory
from pfl_flower.run.config import parse_config
from pfl_flower.run.memory import check_memory, needs
from pfl_flower.run.presets import preset, preset_names
from pfl_flower.support.errors import ConfigError, WorldError
from tests.support.runs import TINY

GIB = 2**30
PLAIN = {key.replace("-", "_"): value for key, value in TINY.items()}
SYNTHETIC = {"dataset": "synthetic-logistic", "nu": 0.1}
NETWORK = {"model": "two-layer", "local-solver": "sgd", "dtype": "float32"}

HUGE: list[tuple[dict[str, Any], str]] = [
    ({"users": 10**12}, "users = 1000000000000: expected at most about"),
    ({"users": 10**12, "strategic-users": "all"}, "users = 1000000000000: expected at most about"),
    ({"strategic-users": "1-1000000000000"}, "strategic-users = 1-1000000000000: expected ids 0"),
    ({"strategic-users": "1000000000000"}, "strategic-users = 1000000000000: expected ids 0 to 10"),
    ({"points-per-user": "1000000000000"}, "points-per-user = 1000000000000: expected at most"),
    ({**SYNTHETIC, "features": 10**10}, "features = 10000000000: expected at most about"),
    ({**NETWORK, "hidden": 10**10}, "hidden = 10000000000: expected at most about"),
    ({**SYNTHETIC, "batch-size": 10**12, "local-solver": "sgd"}, "batch-size = 1000000000000: "),
]


@pytest.mark.parametrize(("keys", "said"), HUGE, ids=[said for _, said in HUGE])
def test_what_is_too_large_anywhere_is_refused_with_the_configuration(
    keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(keys)
    assert str(refused.value).startswith(said)


LARGE: list[tuple[dict[str, Any], str]] = [
    ({"rounds": 10**10}, "rounds = 10000000000: expected at most about"),
    ({"rounds": 10**7, "save_trajectory": True}, "rounds = 10000000: expected at most about"),
    ({"users": 10**7}, "users = 10000000: expected at most about"),
    ({"features": 10**5}, "features = 100000: expected at most about"),
    ({"nodes": 10**12}, "nodes = 1000000000000: expected at most"),
]


@pytest.mark.parametrize(("keys", "said"), LARGE, ids=[said for _, said in LARGE])
def test_what_is_too_large_for_all_of_a_run_is_refused_before_it(
    keys: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine of 1 GiB."""
    monkeypatch.setattr(memory, "memory_limit", lambda: GIB)
    monkeypatch.setattr(HonestClient, "report", lambda *_: pytest.fail("it was run"))
    with pytest.raises(ConfigError) as refused:
        pfl.run(**{**PLAIN, **keys})
    assert str(refused.value).startswith(said)
    assert "1 GiB" in str(refused.value)


def test_what_is_said_to_fit_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: GIB)
    for key in ("users", "features"):
        keys = {**TINY, key: 10**6, "points-per-user": "40"}
        with pytest.raises(ConfigError) as refused:
            check_memory(_unchecked(keys), where="all")
        most = int(str(refused.value).partition("about ")[2].partition(": ")[0].replace(",", ""))
        check_memory(_unchecked({**keys, key: most}), where="all")
        with pytest.raises(ConfigError):
            check_memory(_unchecked({**keys, key: round(1.02 * most)}), where="all")


def _unchecked(keys: dict[str, Any]) -> Any:
    config = parse_config(TINY)
    spelled = {key.replace("-", "_"): value for key, value in keys.items()}
    return config.model_copy(update=spelled)


def test_no_preset_is_near_the_memory_of_a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: 4 * GIB)
    for name in preset_names():
        config = parse_config(preset(name))
        known = {} if config.synthetic else {"inputs": 785, "outputs": 10}
        check_memory(config, **known, where="all")


def test_where_the_memory_cannot_be_found_out_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: None)
    check_memory(_unchecked({"users": 10**15}), where="all")


def test_the_count_is_of_what_there_is() -> None:
    """The users' points and models, by the arrays of a real run: never more is counted."""
    from pfl_flower.run.problem import build_problem

    problem = build_problem(parse_config(TINY))
    counted = {
        need.what: need.bytes for need in needs(problem.config, inputs=6, dim=6, where="all")
    }
    users = problem.datasets(tuple(range(5)))
    real = sum(user.features.numel() for user in users) * 8
    assert 0.9 * real <= counted["the users' points"] <= real
    assert counted["the users' models"] == 5 * 6 * 8
    assert counted["the reports of a round"] == 5 * 6 * 8


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "digits-l2", "--set", "users=1000000000000"],
        ["run", "digits-l2", "--set", "hidden=10000000000", "model=two-layer", "dtype=float32"],
        ["run", "digits-l2", "--rounds", "1000000000000"],
        ["run", "digits-l2", "--seeds", "1-1000000000000"],
        ["run", "digits-l2", "--nodes", "1000000000000"],
        ["sweep", "digits-l2", "--over", "users=20,1000000000000"],
        ["sweep", "digits-l2", "--over", "lam=1", "--nodes", "1000000000000"],
        ["data", "digits-l2", "--set", "users=1000000000000"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_by_every_command(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main([*arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert ": expected at most" in error and error.count("\n") == 1, error
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


OUT_OF_MEMORY: list[Callable[[], object]] = [
    lambda: torch.empty(2**50, dtype=torch.float64),
    lambda: bytearray(2**55),
]


@pytest.mark.parametrize("allocate", OUT_OF_MEMORY, ids=["torch", "Python"])
def test_memory_that_runs_out_in_a_node_of_this_process_ends_the_run(
    allocate: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply that says so would be a rejected report, and a run without that node."""
    monkeypatch.setattr(HonestClient, "report", lambda *_: allocate())
    with pytest.raises(WorldError, match="memory ran out"):
        pfl.run(**PLAIN)


def test_a_refusal_loads_no_torch() -> None:
    code = (
        "import sys; from pfl_flower.run.config import parse_config\n"
        "try: parse_config({'users': 10**12})\n"
        "except ValueError as error: print(error)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("users = 1000000000000")
