"""What ``flwr run`` is given: the checkout, or where there is none an app made for it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from experiments.running import engines, superlink
from experiments.running.engines import ROOT, app_folder
from pfl_flower.run.config import parse_config
from pfl_flower.support.errors import ConfigError


def test_a_checkout_is_an_app(tmp_path: Path) -> None:
    assert app_folder(tmp_path) == ROOT
    assert not list(tmp_path.iterdir())


def test_installed_packages_are_an_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "ROOT", tmp_path / "site-packages")
    made = app_folder(tmp_path)
    stated = tomllib.loads((made / "pyproject.toml").read_text())
    checkout = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert parse_config(stated["tool"]["flwr"]["app"]["config"]) == parse_config({})
    for key in ("components", "publisher"):
        assert stated["tool"]["flwr"]["app"][key] == checkout["tool"]["flwr"]["app"][key]
    assert len(build_fab_from_disk(made)) > 0


def test_where_flower_is_not_installed_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superlink.sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^--engine simulation: expected the program flwr"):
        engines.simulation_command(parse_config({}), 2, tmp_path)
