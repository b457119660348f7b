"""Two ways to run the same apps on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from experiments.running.elsewhere import check_plugins_travel
from experiments.running.options import Options
from experiments.running.resources import Machine, federation
from experiments.running.superlink import (
    COMPLETED,
    failure_in,
    flower_environment,
    run_status,
    script,
    stop_run,
)
from pfl_flower import __version__
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.writing import forget_results, own_folder
from pfl_flower.support.console import logged_to
from pfl_flower.support.errors import RunFailedError
from pfl_flower.support.files import replace_file

ROOT = Path(__file__).resolve().parent.parent.parent
IN_PROCESS_NODES = 2
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
        # What asked for this run has looked at what is there: its results are replaced. One that
        # is to go on replaces them once its checkpoint has been looked at, too.
        if options.fresh or not config.resume:
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
    """Return the ``flwr run`` of a configuration, which it finds in ``folder``.

    Raises
    ------
    ConfigError
        If the nodes cannot have the device, or Flower's program is not there.
    """
    resources = federation(config.device, nodes, Machine.here())
    settings = folder / "run-config.toml"
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in config.flat().items()]
    replace_file(settings, "".join(lines))
    app = str(app_folder(folder))
    command = [script("flwr"), "run", app, "--stream", "--run-config", str(settings)]
    if resources:
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
    check_plugins_travel(config, Path(command[2]))
    environment = flower_environment()
    log_path = folder / "run.log"
    try:
        with log_path.open("w") as file:
            subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
                start_new_session=True,
            )
    except KeyboardInterrupt:
        # What was started goes on without its command line: it is the SuperLink's.
        print(stop_run(log_path.read_text(), environment), file=sys.stderr)
        raise
    text = log_path.read_text()
    status = run_status(text, environment)
    if status != COMPLETED:
        said = failure_in(text, environment)
        raise RunFailedError(f"the run ended as {status}, see {log_path}: {said}")
