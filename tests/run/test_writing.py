"""Two runs, one folder: who may write where, and what a folder is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pfl_flower as pfl
from experiments.running.options import Options
from experiments.running.preset_runs import preset_folder
from pfl_flower import client_app, server_app
from pfl_flower.run.config import parse_config
from pfl_flower.run.presets import preset, preset_names
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.locks import only_writer
from pfl_flower.transport.inprocess import run_in_process
from tests.support.runs import TINY, configure

PLAIN = {key.replace("-", "_"): value for key, value in TINY.items()}
L2 = preset("digits-l2")


@pytest.fixture(autouse=True)
def nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfl_flower.run.figures.run_figure", lambda *_: ())


NAMES: list[tuple[dict[str, Any], str]] = [
    ({}, "digits-squared-l2"),
    (L2, "digits-l2"),
    ({"lam": 0.1, "rounds": 20}, "digits-squared-l2-with-rounds=20,lam=0.1"),
    ({**L2, "lam": 0.1}, "digits-l2-with-lam=0.1"),
    ({"seed": 2}, "digits-squared-l2-with-seed=2"),
    ({"device": "cpu", "reply-timeout": 9.0}, "digits-squared-l2"),
    ({"checkpoint-every": 5, "rounds": 20}, "digits-squared-l2"),
    ({"resume": "auto", "rounds": 90}, "digits-squared-l2"),
    ({"name": "mine", "lam": 0.1}, "mine"),
    ({"name": "a" * 99, "lam": 0.1}, "a" * 99),
]


@pytest.mark.parametrize(("keys", "name"), NAMES, ids=[name for _, name in NAMES])
def test_what_flwr_run_was_told_otherwise_is_in_the_folders_name(
    keys: dict[str, Any], name: str
) -> None:
    assert parse_config({**keys, "output-dir": "/results"}).folder() == Path("/results") / name
    assert parse_config(keys).folder() == Path.home() / "pfl-flower" / name


def test_every_preset_as_it_stands_has_its_own_folder() -> None:
    for name in preset_names():
        assert parse_config(preset(name)).folder().name == name


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "digits-l2"),
        ({"lam": 3.0}, "digits-l2-with-lam=3"),
        ({"attack": "my_attack:Opposite"}, "digits-l2-with-attack=my_attack_Opposite-b916e6"),
        ({"checkpoint-every": 2, "resume": "auto"}, "digits-l2"),
    ],
)
def test_the_command_line_names_folders_alike(settings: dict[str, Any], name: str) -> None:
    options = Options(output=Path("/x"), settings=settings, seeds=(3,))
    assert preset_folder("digits-l2", options) == Path("/x") / name
    flower = {**L2, **settings, "output-dir": "/x"}
    assert parse_config(flower).folder() == preset_folder("digits-l2", options)


def test_a_folder_that_is_named_is_the_folder(tmp_path: Path) -> None:
    """Also one with a preset's name, whatever the settings."""
    pfl.run(**PLAIN, output=tmp_path / "digits-l2")
    assert pfl.load(tmp_path / "digits-l2").config["lam"] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["digits-l2"]


def test_other_settings_results_are_not_written_over(tmp_path: Path) -> None:
    pfl.run(**PLAIN, output=tmp_path / "x")
    before = (tmp_path / "x/rounds.csv").read_bytes()
    with pytest.raises(ConfigError) as refused:
        pfl.run(**{**PLAIN, "rounds": 2}, output=tmp_path / "x")
    assert str(refused.value).startswith(f"output = {tmp_path}/x: expected a folder without")
    assert "rounds = 6 there, 2 here" in str(refused.value)
    # The ServerApp asks for itself: it may have been started by another command.
    other = configure(rounds=2, output_dir=str(tmp_path), name="x")
    with pytest.raises(ConfigError, match=r"output-dir = .* rounds = 6 there, 2 here"):
        run_in_process(server_app.app, client_app.app, nodes=1, run_config=other.flat())
    assert (tmp_path / "x/rounds.csv").read_bytes() == before
    assert pfl.load(tmp_path / "x").passed
    pfl.run(**{**PLAIN, "rounds": 2}, output=tmp_path / "x", fresh=True)
    assert len(pfl.load(tmp_path / "x").rounds) == 3
    # The same settings are the same run.
    pfl.run(**{**PLAIN, "rounds": 2}, output=tmp_path / "x", device="cpu")


def test_a_run_that_can_go_on_finds_its_folder_with_more_rounds(tmp_path: Path) -> None:
    keys = {"dataset": "synthetic-logistic", "features": 3, "nu": 0.1, "points-per-user": "20"}
    keys |= {"evaluate-every": 0, "checkpoint-every": 1, "output-dir": str(tmp_path)}
    for rounds, more in ((2, {}), (4, {"resume": "auto"})):
        config = parse_config({**keys, "rounds": rounds, **more})
        run_in_process(server_app.app, client_app.app, nodes=1, run_config=config.flat())
    (folder,) = tmp_path.iterdir()
    assert "features=3" in folder.name and "rounds" not in folder.name
    assert json.loads((folder / "summary.json").read_text())["config"]["rounds"] == 4
    fewer = parse_config({**keys, "rounds": 3})
    with pytest.raises(ConfigError, match="expected a folder without results of other settings"):
        run_in_process(server_app.app, client_app.app, nodes=1, run_config=fewer.flat())


def test_a_run_that_begins_again_takes_back_that_it_was_finished(tmp_path: Path) -> None:
    pfl.run(**PLAIN, output=tmp_path / "x")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pfl_flower.server_app.conclude", stop)
        pfl.run(**PLAIN, output=tmp_path / "x")
    with pytest.raises(ConfigError, match="expected a finished run"):
        pfl.load(tmp_path / "x")
    pfl.run(**PLAIN, output=tmp_path / "x")


def in_api(tmp_path: Path) -> object:
    return pfl.run(**PLAIN, output=tmp_path / "x")


def in_server_app(tmp_path: Path) -> object:
    config = configure(output_dir=str(tmp_path), name="x")
    return run_in_process(server_app.app, client_app.app, nodes=1, run_config=config.flat())


def in_sweep(tmp_path: Path) -> object:
    return pfl.sweep(None, {"lam": [1.0]}, output=tmp_path / "x", progress=False, **PLAIN)


def with_memory_elsewhere(tmp_path: Path) -> object:
    own = {"checkpoint_every": 1, "state_dir": str(tmp_path)}
    return pfl.run(**PLAIN, **own, output=tmp_path / "other" / "x")


@pytest.mark.parametrize("run", [in_api, in_server_app, in_sweep, with_memory_elsewhere])
def test_a_folder_in_which_another_run_writes_is_refused(run: Any, tmp_path: Path) -> None:
    with only_writer("output-dir", tmp_path / "x"):
        with pytest.raises(ConfigError, match=r"expected a folder to which nothing else writes"):
            run(tmp_path)
    assert not [path for path in (tmp_path / "x").iterdir()]
    run(tmp_path)
