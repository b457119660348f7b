"""The same apps under Flower's simulation on Ray: same trajectory, and failures are seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.running.engines import run_once
from experiments.running.options import Options
from pfl_flower.run import trial
from pfl_flower.run.attendance import TOOK_PART
from pfl_flower.run.finished import read_result
from pfl_flower.support.errors import ConfigError, RunFailedError
from tests.support.superlink import private_superlink

DIGITS = {
    "points-per-user": "100",
    "rounds": 10,
    "evaluate-every": 5,
    "save-trajectory": True,
}


@pytest.fixture(scope="module")
def superlink(tmp_path_factory):  # type: ignore[no-untyped-def]
    patch = pytest.MonkeyPatch()
    with private_superlink(tmp_path_factory.mktemp("flwr")) as environment:
        for key, value in environment.items():
            patch.setenv(key, value)
        yield
    patch.undo()


SYNTHETIC = {"dataset": "synthetic-logistic", "features": 6, "nu": 0.1, "evaluate-every": 0}


@pytest.mark.parametrize("attack", ["model", "data"])
def test_disguised_attacks_agree_on_both_engines(
    attack: str, superlink: None, tmp_path: Path
) -> None:
    """Each process of Ray's works out theta_spade and its data by itself, and finds the same."""
    found = []
    for engine in ("inprocess", "simulation"):
        options = Options(engine=engine, nodes=2)  # type: ignore[arg-type]
        config = options.configure({**DIGITS, **SYNTHETIC, "attack": attack}, tmp_path / engine, 1)
        run_once(config, options)
        found.append(np.load(config.folder() / "trajectory.npy"))
    assert np.abs(found[0][-1] - found[0][0]).max() > 0.1
    assert np.abs(found[0] - found[1]).max() <= 1e-9


def test_ray_and_in_process_runs_agree(superlink: None, tmp_path: Path) -> None:
    """Honest and strategic users on different nodes, every round to 1e-9."""
    found = []
    for engine in ("inprocess", "simulation"):
        options = Options(engine=engine, nodes=3)  # type: ignore[arg-type]
        config = options.configure(DIGITS, tmp_path / engine, 1)
        run_once(config, options)
        found.append(np.load(config.folder() / "trajectory.npy"))
        checks = read_result(config.folder()).checks
        assert [one.passed for one in checks if one.name == TOOK_PART] == [True]
        assert "11 users on 3 nodes, strategic: [10]" in (config.folder() / "run.log").read_text()
    assert found[0].shape == (11, 650)
    assert np.abs(found[0][-1]).max() > 0.1
    assert np.abs(found[0] - found[1]).max() <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("personalization", ["classical", "ditto", "local"])
def test_other_objectives_agree_on_both_engines(
    personalization: str, superlink: None, tmp_path: Path
) -> None:
    """Rho of every round, and how good the users' models are, whoever carries the messages."""
    found = []
    for engine in ("inprocess", "simulation"):
        options = Options(engine=engine, nodes=3)  # type: ignore[arg-type]
        keys = {**DIGITS, "rounds": 4, "evaluate-every": 4, "personalization": personalization}
        config = options.configure(keys, tmp_path / engine, 1)
        run_once(config, options)
        result = read_result(config.folder())
        rhos = np.load(config.folder() / "trajectory.npy")
        found.append((rhos, result.metrics["local_accuracy"]))
    assert np.abs(found[0][0] - found[1][0]).max() <= 1e-9
    assert found[0][1] == found[1][1]
    moved = np.abs(found[0][0][-1] - found[0][0][0]).max()
    assert moved == 0 if personalization == "local" else moved > 1e-3


@pytest.mark.slow
def test_a_network_agrees_on_both_engines(superlink: None, tmp_path: Path) -> None:
    """Each process learns the target by itself, and finds the same."""
    found = []
    for engine in ("inprocess", "simulation"):
        options = Options(engine=engine, nodes=3)  # type: ignore[arg-type]
        keys = {
            **DIGITS,
            "model": "cnn",
            "local-solver": "adam",
            "local-steps": 2,
            "batch-size": 20,
        }
        config = options.configure({**keys, "rounds": 4}, tmp_path / engine, 1)
        run_once(config, options)
        found.append(np.load(config.folder() / "trajectory.npy"))
    assert found[0].shape == (5, 2074)
    assert np.abs(found[0][-1] - found[0][0]).max() > 0.01
    assert np.abs(found[0] - found[1]).max() <= 1e-9


@pytest.mark.slow
def test_a_backdoor_agrees_on_both_engines(superlink: None, tmp_path: Path) -> None:
    """Each process stamps the same points, and measures the trigger on its users' own."""
    found = []
    for engine in ("inprocess", "simulation"):
        options = Options(engine=engine, nodes=3)  # type: ignore[arg-type]
        keys = {**DIGITS, "partition": "dirichlet", "rounds": 8, "strategic-users": "7-10"}
        keys |= {"attack": "backdoor", "attack-options": '{"share": 0.5}'}
        config = options.configure(keys, tmp_path / engine, 1)
        run_once(config, options)
        result = read_result(config.folder())
        found.append((np.load(config.folder() / "trajectory.npy"), result.users_text))
        assert result.metrics["triggered_theta_worst"] > 0
    assert np.abs(found[0][0] - found[1][0]).max() <= 1e-9
    assert found[0][1] == found[1][1]


@pytest.mark.slow
def test_users_are_dealt_the_same_on_ray(superlink: None, tmp_path: Path) -> None:
    """Each process of Ray's deals by itself; own test sets are measured there."""
    found = []
    for engine in ("inprocess", "simulation"):
        options = Options(engine=engine, nodes=3)  # type: ignore[arg-type]
        keys = {**DIGITS, "points-per-user": "60", "partition": "dirichlet", "rounds": 4}
        config = options.configure(keys, tmp_path / engine, 1)
        run_once(config, options)
        users = (config.folder() / "users.csv").read_text()
        found.append((np.load(config.folder() / "trajectory.npy"), users))
    assert np.abs(found[0][0] - found[1][0]).max() <= 1e-9
    assert found[0][1] == found[1][1]
    assert "10,strategic," in found[0][1]


def test_a_run_that_fails_is_seen_to_fail(
    superlink: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own command says so first; Flower's exits 0, and its list of runs knows better."""
    options = Options(engine="simulation", nodes=2)
    missing = {**DIGITS, "points-per-user": "5000"}
    config = options.configure(missing, tmp_path, 1)
    with pytest.raises(ConfigError, match="points-per-user = 5000"):
        run_once(config, options)
    monkeypatch.setattr(trial, "check_before", lambda config: None)
    with pytest.raises(RunFailedError, match=r"finished:failed.*points-per-user = 5000"):
        run_once(config, options)


@pytest.mark.slow
def test_a_simulation_that_lost_every_honest_reply_does_not_pass(
    superlink: None, tmp_path: Path
) -> None:
    """No node answers within a thousandth of a second; the run ends, and says what it was worth."""
    options = Options(engine="simulation", nodes=2)
    keys = {**DIGITS, **SYNTHETIC, "rounds": 2, "reply-timeout": 0.001, "strategic-users": "none"}
    config = options.configure(keys, tmp_path, 1)
    run_once(config, options)
    found = read_result(config.folder())
    failed = {check.name: check.value for check in found.checks if not check.passed}
    assert failed == {"honest_users_never_heard": 11, "rounds_without_honest_reports": 2}
