"""The Flower ServerApp: one run from its configuration to its results."""

from __future__ import annotations

import time
from logging import ERROR, INFO
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pfl_flower.run.conclusion import conclude
from pfl_flower.run.config import parse_config
from pfl_flower.run.outcome import Outcome
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.run.rounds import Watch, unwatched
from pfl_flower.run.tables import check_imports
from pfl_flower.run.trial import try_plugins
from pfl_flower.run.writing import surroundings, writing
from pfl_flower.support.console import Say, say, silent
from pfl_flower.support.errors import REFUSALS
from pfl_flower.support.world import failures_told
from pfl_flower.transport.broadcasts import pack_rho
from pfl_flower.transport.flower_internals import log, log_refusals_once
from strategies.bookkeeping import Bookkeeper
from strategies.parameter_server import ParameterServer

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run config says; bad input is one line in the log and a failed run."""
    log_refusals_once()
    try:
        with failures_told(""):
            config = parse_config(context.run_config)
            log(INFO, "%s", surroundings(config))
            run(grid, build_problem(config), folder=config.folder(), say=say)
    except REFUSALS as error:
        log(ERROR, "%s", error)
        raise


def run(
    grid: Grid,
    problem: Problem,
    *,
    folder: Path | None = None,
    say: Say = silent,
    watch: Watch = unwatched,
    tracked: Path | None = None,
) -> Outcome:
    """Run a problem on the nodes of a grid, and return what was measured.

    This is the whole of a run, whoever carries the messages; without the ServerApp around it, it
    writes nothing and prints nothing unless it is told where and by whom. (Flower's own logger,
    ``flwr``, speaks all the same.)

    Parameters
    ----------
    grid : Grid
        Flower's, or an ``InProcessGrid`` in this process.
    problem : Problem
        ``build_problem`` of a configuration.
    folder : Path or None
        Where results are written, as the run goes; None for nowhere.
    say : callable
        Who is told the results, line by line.
    watch : callable
        Who is told of each round: its number, and what was measured of rho.
    tracked : Path or None
        Where a tracker may write, if not to ``folder``: the run's place in a sweep.

    Raises
    ------
    ConfigError
        If a plug-in cannot be imported, its options are wrong or it fails when it is tried; if a
        file that only nodes look at is not there; if a checkpoint is asked for where nothing is
        written, or one to go on from cannot be used; if the folder cannot be written to, another
        run writes there, or it holds what other settings came to.
    WorldError
        If disk, permissions or memory stop it: how to go on.
    NodesMissingError
        If fewer nodes than ``min-nodes`` came, or are left.
    """
    began = time.perf_counter()
    config = problem.config
    check_imports(config)
    problem.check_memory("server")
    try_plugins(problem)
    with writing(config, folder), Bookkeeper(problem, folder, watch, tracked) as book:
        strategy = ParameterServer(
            problem,
            on_round=book.close_round,
            on_checkpoint=book.save_checkpoint,
            saved=book.saved,
        )
        strategy.start(
            grid,
            pack_rho(problem.initial),
            num_rounds=config.rounds,
            timeout=config.reply_timeout,
            evaluate_fn=book.evaluate,
        )
        return conclude(problem, book.course(), began=began, folder=folder, say=say)
