"""A run in a process that somebody else has started: what it needs is spelled out for it.

A SuperLink that is up has the environment, the home folder and the working directory of whoever
started it. So paths go to it absolute, the data folder by its name, and a plug-in that it could
not import is refused here.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

from pfl_flower.data.table import DATASETS
from pfl_flower.run.config import RunConfig
from pfl_flower.run.tables import TABLES
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.folders import data_folder, own_path
from pfl_flower.support.plugins import find, is_plugin


def spelled_out(config: RunConfig) -> dict[str, Any]:
    """Return the keys of a configuration that mean something else elsewhere, as they mean it here.

    Raises
    ------
    ConfigError
        If one names no path.
    """
    found: dict[str, Any] = {key: str(own_path(key, path)) for key, path in config.paths().items()}
    if "data-dir" in DATASETS.row(config.dataset).reads:
        found["data-dir"] = str(data_folder(config.data_dir))
    if config.embedded and not config.embedding_weights:
        from pfl_flower.data.embeddings import weights_file

        found["embedding-weights"] = str(weights_file())
    if config.standardise not in ("off", "training"):
        found["standardise"] = _place(config, config.standardise)
    if config.test_data:
        found["test-data"] = _place(config, config.test_data)
    kind, colon, path = config.dataset.partition(":")
    if colon and path and f"{kind}:PATH" in dict(DATASETS.items()):
        found["dataset"] = f"{kind}:{_place(config, path)}"
    return found


def _place(config: RunConfig, path: str) -> str:
    """Return the path of a file of data, absolute where it is one: a name on the Hub is none."""
    if path.startswith("~"):
        return str(own_path("dataset", path))
    if DATASETS.row(config.dataset).path == "data" or config.data_dir:
        return path
    here = Path.cwd() / path
    return str(here) if here.exists() else path


def check_plugins_travel(config: RunConfig, app: Path) -> None:
    """Refuse a plug-in that Flower does not carry along and that is not installed.

    Parameters
    ----------
    config : RunConfig
        The run's.
    app : Path
        The folder that ``flwr run`` is given, whose Python files it carries.

    Raises
    ------
    ConfigError
        One line: the key, its value, the file, and where it would be found.
    """
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    for table in TABLES:
        name = str(getattr(config, table.point))
        if not is_plugin(name):
            continue
        file = _file(table.point, name)
        if file is None or any(file.is_relative_to(place) for place in installed):
            continue
        if not file.is_relative_to(app):
            raise ConfigError(
                f"{table.point} = {name}: expected, under --engine simulation, a module in {app}, "
                f"which Flower takes along, or one that is installed, and it is {file}"
            )


def _file(point: str, name: str) -> Path | None:
    module = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
    if module is None:
        module = getattr(sys.modules.get(str(find(point, name, name).__module__)), "__file__", None)
    return None if module is None else Path(module).resolve()
