"""What a script or a notebook calls: ``run``, ``sweep``, ``load``."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from rich.console import Console

from pfl_flower import client_app, server_app
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.finished import Result, read_result
from pfl_flower.run.presets import as_folder, as_keys, preset
from pfl_flower.run.problem import build_problem
from pfl_flower.run.progress import round_bar
from pfl_flower.run.rounds import Watch, unwatched
from pfl_flower.support.console import logged_to
from pfl_flower.support.errors import ConfigError
from pfl_flower.transport.inprocess import InProcessGrid


def run(
    name: str | None = None,
    /,
    *,
    nodes: int = 2,
    output: str | Path | None = None,
    progress: bool = False,
    **keys: object,
) -> Result:
    """Run a preset, or the settings of ``keys``, in this process.

    Parameters
    ----------
    name : str, optional
        A preset, see ``presets()``; without one every key has its default.
    nodes : int
        Virtual nodes among which the users are laid out; the result does not depend on it.
    output : path, optional
        Folder of the results, for ``load``. Without it nothing is written.
    progress : bool
        Show a bar.
    **keys
        Keys of the run configuration, with ``_`` for ``-``: ``lam=0.3, points_per_user=[600, 10]``.
        A plug-in may be given as a class or function.

    Raises
    ------
    ConfigError
        In one line: a key, its value, and what would be right.
    DataError
        If the data cannot be had.

    Examples
    --------
    >>> result = run(dataset="synthetic-logistic", features=5, users=4, strategic_users=3,
    ...              points_per_user=20, nu=0.1, rounds=3)
    >>> result.rho.shape, result.rounds["round"].tolist(), result.passed
    ((5,), [0, 1, 2, 3], True)
    """
    if nodes < 1:
        raise ConfigError(f"nodes = {nodes}: expected at least 1")
    base = {} if name is None else preset(name)
    config = parse_config({**base, **as_keys(keys), **(as_folder(output) if output else {})})
    shown = f"{config.name}, seed {config.seed}"
    console = Console(stderr=True, quiet=not progress)
    with round_bar(console, shown, config.rounds) as watch:
        return _run(config, nodes, config.folder() if output else None, watch)


def load(folder: str | Path) -> Result:
    """Return what a folder holds: the result of a run.

    Raises
    ------
    ConfigError
        If it is no folder of ours.
    """
    return read_result(Path(folder).expanduser().absolute())


def _run(
    config: RunConfig, nodes: int, folder: Path | None = None, watch: Watch = unwatched
) -> Result:
    problem, log = build_problem(config), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(logged_to(log))
        grid = InProcessGrid(client_app.app, nodes=nodes, run_config=config.flat())
        outcome = server_app.run(grid, problem, folder=folder, watch=watch)
    return Result.of(outcome, log=log.getvalue(), folder=folder)
