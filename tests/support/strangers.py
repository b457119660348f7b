"""Apps that are not ours: a copy with some lines replaced, and a run of it in one process."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfl_flower.transport.inprocess import run_in_process

Replaced = Mapping[str, Mapping[str, str]]
"""For each module of an app: what stands there once, and what is to stand there instead."""


def with_lines(app: Path, folder: Path, replaced: Replaced) -> Path:
    """Return a copy of an app, in a folder of its name, whose lines are replaced."""
    copy = shutil.copytree(app, folder / app.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, lines in replaced.items():
        path = copy / app.name / f"{name}.py"
        text = path.read_text()
        for theirs, ours in lines.items():
            assert text.count(theirs) == 1, theirs
            text = text.replace(theirs, ours)
        path.write_text(text)
    return copy


def played(app: Path, output: Path, *, nodes: int, **config: Any) -> Any:
    """Run an app of one package, of the folder's name, in this process; return what it wrote."""
    given = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    _forget(app.name)
    sys.path.insert(0, str(app))
    try:
        server, client = (
            importlib.import_module(f"{app.name}.{name}_app").app for name in ("server", "client")
        )
        told = {**given, **config, "output": str(output)}
        run_in_process(server, client, nodes=nodes, run_config=told)
    finally:
        sys.path.remove(str(app))
        _forget(app.name)
    return json.loads(output.read_text())


def _forget(package: str) -> None:
    for name in [one for one in sys.modules if one.partition(".")[0] == package]:
        del sys.modules[name]
