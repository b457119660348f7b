"""What a script or a notebook calls: ``run``, ``sweep``, ``load``, ``compare``."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from pfl_flower import client_app, server_app
from pfl_flower.data.own.objects import own_data
from pfl_flower.run.comparison import Comparison
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.finished import Result, read_result
from pfl_flower.run.grid import cells
from pfl_flower.run.keys import kebab
from pfl_flower.run.memory import check_nodes
from pfl_flower.run.presets import as_folder, as_keys, preset
from pfl_flower.run.problem import build_problem
from pfl_flower.run.progress import round_bar
from pfl_flower.run.results import LIMIT_FILE
from pfl_flower.run.rounds import Watch, unwatched
from pfl_flower.run.sweep_book import SWEEP_FILE, read_seeds, read_sweep
from pfl_flower.run.sweeping import run_cells
from pfl_flower.run.sweeps import Sweep
from pfl_flower.run.trial import check_before
from pfl_flower.run.unread import check_given
from pfl_flower.run.writing import own_folder, take_folder
from pfl_flower.support.console import logged_to
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.folders import own_path
from pfl_flower.support.threads import at_most
from pfl_flower.transport.inprocess import InProcessGrid


def run(
    name: str | None = None,
    /,
    *,
    nodes: int = 2,
    output: str | Path | None = None,
    fresh: bool = False,
    progress: bool = False,
    data: object = None,
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
    fresh : bool
        Replace what other settings have left in that folder, which is refused otherwise.
    progress : bool
        Show a bar.
    data : object, optional
        Points of one's own: ``(x, y)``, arrays or tensors, or a PyTorch data set, from which users
        draw; or a list of either, one for each user, who then has ``partition = natural``.
    **keys
        Keys of the run configuration, with ``_`` for ``-``: ``lam=0.3, points_per_user=[600, 10]``.
        A plug-in may be given as a class or function.

    Raises
    ------
    ConfigError
        In one line: a key, its value, and what would be right.
    DataError
        If the data cannot be had.
    WorldError
        If disk, permissions or memory stop it.

    Examples
    --------
    >>> result = run(dataset="synthetic-logistic", features=5, users=4, strategic_users=3,
    ...              points_per_user=20, nu=0.1, rounds=3)
    >>> result.rho.shape, result.rounds["round"].tolist(), result.passed
    ((5,), [0, 1, 2, 3], True)
    """
    check_nodes("nodes =", nodes)
    base = {"name": "run"} if name is None else preset(name)
    given = as_keys(keys)
    keyed = {**own_data(data), **given}
    config = parse_config({**base, **keyed, **(as_folder(output) if output else {})})
    check_given(config, given)
    if output:
        take_folder("output", config, fresh=fresh)
    shown = f"{config.name}, seed {config.seed}"
    with round_bar(_console(progress), shown, config.rounds) as watch:
        return _run(config, nodes, config.folder() if output else None, watch)


def sweep(
    name: str | None,
    over: Mapping[str, Iterable[object]],
    /,
    *,
    seeds: Iterable[int] = (1,),
    jobs: int = 1,
    threads: int = 1,
    nodes: int = 2,
    output: str | Path | None = None,
    fresh: bool = False,
    progress: bool | Console = True,
    data: object = None,
    **keys: object,
) -> Sweep:
    """Run every combination of some keys' values, for every seed.

    Parameters
    ----------
    name : str or None
        A preset, or None for every key's default.
    over : mapping
        For each swept key its values; a plug-in may be given as a class or function.
    seeds : iterable of int
        One run each.
    jobs : int
        Processes that run cells side by side; with 1 all is done in this one. It does not change
        what comes out.
    threads : int
        Threads of each cell, whatever ``jobs``: the last digits of a result depend on it.
    nodes : int
        Virtual nodes of each cell.
    output : path, optional
        Folder of the results: a table, ``sweep.csv``, and a folder for each cell. Cells that are
        there, of the same settings and code, are kept: a sweep that was stopped goes on.
    fresh : bool
        Run the cells again that are there.
    progress : bool or Console
        Show a bar.
    data : object, optional
        As in ``run``.
    **keys
        Keys of all cells, with ``_`` for ``-``.

    Returns
    -------
    Sweep
        A cell that breaks off is a row with its error; the others are run all the same.

    Raises
    ------
    ConfigError
        Before the first cell is run, if one of them cannot be.

    Examples
    --------
    >>> tiny = dict(dataset="synthetic-logistic", features=5, users=4, strategic_users=3,
    ...             points_per_user=20, nu=0.1, rounds=3, evaluate_every=0)
    >>> grid = sweep(None, {"lam": [0.1, 1]}, seeds=(1, 2), progress=False, **tiny)
    >>> grid.passed, grid.table("norm_rho").columns
    (True, ('lam', 'seeds', 'norm_rho', 'norm_rho_std'))
    """
    for what, value in (("jobs", jobs), ("threads", threads), ("nodes", nodes)):
        if value < 1:
            raise ConfigError(f"{what} = {value}: expected at least 1")
    check_nodes("nodes =", nodes)
    folder = None if output is None else own_path("output", output)
    base = {} if name is None else {k: v for k, v in preset(name).items() if k != "name"}
    given = as_keys(keys)
    if twice := set(given).intersection(map(kebab, over)):
        key = min(twice)
        raise ConfigError(f"{key} = {given[key]}: expected no key that is swept over")
    planned = cells({**base, **own_data(data), **given}, over, seeds, folder)
    if not any(cell.config.strategic() for cell in planned):
        check_given(planned[0].config, given)
    for cell in planned:
        if cell.seed == planned[0].seed:
            check_before(cell.config)
    with own_folder("output", folder) if folder else contextlib.nullcontext():
        return run_cells(
            planned,
            partial(_cell, nodes, threads),
            jobs=jobs,
            threads=threads,
            folder=folder,
            fresh=fresh,
            console=progress if isinstance(progress, Console) else _console(progress),
        )


def load(folder: str | Path) -> Result | Sweep:
    """Return what a folder holds: the result of a run, a sweep, or a preset's runs of all seeds.

    Raises
    ------
    ConfigError
        If it holds none of them.
    """
    place = own_path("folder", folder)
    if (place / SWEEP_FILE).exists():
        return read_sweep(place)
    return read_result(place) if (place / LIMIT_FILE).exists() else read_seeds(place)


def compare(*found: Result | Sweep | str | Path) -> Comparison:
    """Put runs, or folders of runs, side by side.

    Raises
    ------
    ConfigError
        If a folder holds no run.
    """
    return Comparison.of([load(one) if isinstance(one, str | Path) else one for one in found])


def _console(shown: bool) -> Console:
    # In a notebook rich draws bars with ipywidgets, and complains where they are not installed.
    widgets = shown and find_spec("ipywidgets") is not None
    return Console(stderr=True, quiet=not shown, force_jupyter=None if widgets else False)


def _cell(nodes: int, threads: int, values: Mapping[str, Any]) -> Result:
    config = parse_config(as_keys(values))
    with at_most(threads):
        return _run(config, nodes, tracked=config.folder() if "output-dir" in values else None)


def _run(
    config: RunConfig,
    nodes: int,
    folder: Path | None = None,
    watch: Watch = unwatched,
    tracked: Path | None = None,
) -> Result:
    problem, log = build_problem(config), io.StringIO()
    problem.check_memory("all")
    with contextlib.ExitStack() as stack:
        stack.enter_context(logged_to(log))
        grid = InProcessGrid(client_app.app, nodes=nodes, run_config=config.flat())
        outcome = server_app.run(grid, problem, folder=folder, watch=watch, tracked=tracked)
    return Result.of(outcome, log=log.getvalue(), folder=folder)
