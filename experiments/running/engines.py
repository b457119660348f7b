"""Two ways to run the same apps on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from experiments.running.options import Options
from pfl_flower import __version__
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.writing import forget_results, own_folder
from pfl_flower.support.console import logged_to
from pfl_flower.support.errors import ConfigError, RunFailedError
from pfl_flower.support.files import replace_file

ROOT = Path(__file__).resolve().parent.parent.parent
IN_PROCESS_NODES = 2
COMPLETED = "finished:completed"
INSTALLED_APP = """\
[project]
name = "pfl-flower"
version = "{version}"
description = "The installed packages as a Flower app"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "pfl-flower"

[tool.flwr.app.components]
serverapp = "pfl_flower.server_app:app"
clientapp = "pfl_flower.client_app:app"

[tool.flwr.app.config]
{keys}"""


def run_once(config: RunConfig, options: Options) -> None:
    """Run one configuration to its end; what it prints goes to ``run.log`` in its folder.

    Raises
    ------
    ConfigError, DataError
        If it is refused, before Flower is started.
    RunFailedError
        If it did not finish, with the first error that it logged.
    """
    folder = config.folder()
    with own_folder("--output", folder):
        # What asked for this run has looked at what is there: its results are replaced.
        forget_results(folder)
    if options.engine == "inprocess":
        _in_process(config, options.nodes or IN_PROCESS_NODES, folder / "run.log")
    else:
        _simulation(config, options.nodes, folder)


def _in_process(config: RunConfig, nodes: int, log_path: Path) -> None:
    from pfl_flower import client_app, server_app
    from pfl_flower.run.problem import build_problem
    from pfl_flower.transport.inprocess import run_in_process

    with log_path.open("a" if config.resume else "w") as file, logged_to(file):
        build_problem(config).check_memory("all")
        run_in_process(server_app.app, client_app.app, nodes=nodes, run_config=config.flat())


def simulation_command(config: RunConfig, nodes: int | None, folder: Path) -> list[str]:
    """Return the ``flwr run`` of a configuration, which it finds in ``folder``."""
    settings = folder / "run-config.toml"
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in config.flat().items()]
    replace_file(settings, "".join(lines))
    app = str(app_folder(folder))
    command = [_script("flwr"), "run", app, "--stream", "--run-config", str(settings)]
    if nodes is not None:
        resources = f"num-supernodes={nodes} client-resources-num-cpus=1"
        command += ["--federation-config", resources]
    return command


def app_folder(folder: Path) -> Path:
    """Return what ``flwr run`` is given: the checkout, or an app made in ``folder``.

    Where the packages are installed there is no pyproject.toml beside them: the app that is made
    has one and no code, and its two apps are imported from where they are installed.
    """
    if (ROOT / "pyproject.toml").is_file():
        return ROOT
    made = folder / "app"
    made.mkdir(parents=True, exist_ok=True)
    defaults = parse_config({}).flat()
    keys = "".join(f"{key} = {json.dumps(value)}\n" for key, value in defaults.items())
    (made / "pyproject.toml").write_text(INSTALLED_APP.format(version=__version__, keys=keys))
    return made


def _simulation(config: RunConfig, nodes: int | None, folder: Path) -> None:
    from pfl_flower.run.trial import check_before

    check_before(config)
    command = simulation_command(config, nodes, folder)
    environment = flower_environment()
    log_path = folder / "run.log"
    with log_path.open("w") as file:
        subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False)
    text = log_path.read_text()
    status = run_status(text, environment)
    if status != COMPLETED:
        plain = re.sub(r"\x1b\[[\d;]*m", "", text)
        errors = re.findall(r"ERROR\s*:\s*(.*)", plain) or plain.splitlines()[-1:]
        said = errors[0].strip() if errors else "no output"
        raise RunFailedError(f"the run ended as {status}, see {log_path}: {said}")


def flower_environment() -> dict[str, str]:
    """Return the environment of ``flwr``, in which it finds Flower's other programs.

    It starts a local SuperLink by name: of an environment that is not activated they are not on
    the PATH.
    """
    programs = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
    }


def run_status(output: str, environment: dict[str, str]) -> str:
    """Return the status Flower keeps of the run in ``output``; its exit code is always 0."""
    started = re.search(r"Successfully started run (\d+)", output)
    if started is None:
        return "not started"
    listing = subprocess.run(
        [_script("flwr"), "ls", "--format", "json"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    try:
        runs = json.loads(listing.stdout)["runs"]
    except (ValueError, KeyError):
        return "unknown"
    found = [run["status"] for run in runs if run["run-id"] == started[1]]
    return found[0] if found else "unknown"


def _script(name: str) -> str:
    """Return a program of this environment, which need not be on the PATH.

    Raises
    ------
    ConfigError
        If it is neither beside the interpreter nor on the PATH.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ConfigError(
            f"--engine simulation: expected the program {name} beside {sys.executable} or on the "
            "PATH; pip install 'flwr[simulation]' brings it"
        )
    return found
