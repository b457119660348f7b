"""The Flower ServerApp: one run from its configuration to its results."""

from __future__ import annotations

import time
from logging import ERROR
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from rich.console import Console
from rich.table import Table

from pfl_flower.run.at_equilibrium import measure_equilibrium
from pfl_flower.run.checks import sanity_checks
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.figures import figure_title, run_figure
from pfl_flower.run.metrics import last_metrics
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.run.results import (
    LIMIT_FILE,
    RoundsFile,
    behaviour,
    read_rounds,
    summarise,
    write_json,
)
from pfl_flower.support.console import say
from pfl_flower.support.errors import ConfigError, DataError, NodesMissingError
from pfl_flower.transport.messages import pack_rho
from strategies.bookkeeping import Bookkeeper
from strategies.checkpoint import (
    load_checkpoint,
)
from strategies.parameter_server import ParameterServer

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run config says; bad input is one line in the log and a failed run."""
    try:
        config = parse_config(context.run_config)
        run(grid, config, build_problem(config))
    except (ConfigError, DataError, NodesMissingError) as error:
        log(ERROR, "%s", error)
        raise


def run(grid: Grid, config: RunConfig, problem: Problem) -> Path:
    """Run the strategy, write the results, and return their folder."""
    began = time.perf_counter()
    folder = config.folder()
    found = load_checkpoint(
        config, device=problem.device, dim=problem.model.dim, dtype=problem.dtype
    )
    kept = found.records.rounds if found is not None else ""
    with RoundsFile(folder / "rounds.csv", kept) as rounds:
        book = Bookkeeper(problem, rounds)
        if found is not None:
            book.resume(found)
        strategy = ParameterServer(
            problem,
            on_round=book.close_round,
            on_checkpoint=book.save_checkpoint,
            saved=found.server if found is not None else None,
        )
        strategy.start(
            grid,
            pack_rho(problem.initial),
            num_rounds=config.rounds,
            timeout=config.reply_timeout,
            evaluate_fn=book.evaluate,
        )
    if config.save_trajectory:
        np.save(folder / "trajectory.npy", torch.stack(book.trajectory).cpu().numpy())
    book.save_limit(folder / LIMIT_FILE)
    at_rest = {}
    if config.equilibrium:
        say("looking for the exact equilibrium")
        at_rest = measure_equilibrium(problem, book.evaluation, book.rho)
    _conclude(config, problem, folder, at_rest, time.perf_counter() - began)
    return folder


def _conclude(
    config: RunConfig,
    problem: Problem,
    folder: Path,
    at_rest: dict[str, float],
    seconds: float,
) -> None:
    rows = read_rounds(folder / "rounds.csv")
    final = {**last_metrics(rows), **at_rest}
    trend = behaviour([row["step_norm"] for row in rows if "step_norm" in row])
    extra = {"behaviour": trend, "estimator": config.estimator}
    summary = summarise(
        experiment=config.name,
        config=config.flat(),
        seeds=[config.seed],
        finals=[final],
        checks=sanity_checks(config, rows),
        device=str(problem.device),
        seconds=seconds,
        extra=extra,
    )
    write_json(folder / "summary.json", summary)
    figures = run_figure([rows], figure_title(config), folder)
    _print_table(config, final, trend, seconds)
    for path in (folder / "rounds.csv", folder / "summary.json", *figures):
        say(f"  {path}")


def _print_table(config: RunConfig, final: dict[str, float], trend: str, seconds: float) -> None:
    say(f"\n{config.name}: {figure_title(config)}")
    table = Table()
    table.add_column("after the last round")
    table.add_column("value", justify="right")
    for key, meaning in (
        ("accuracy_true", "accuracy on true labels"),
        ("accuracy_target", "accuracy on the attacker's labels"),
        ("local_accuracy", "accuracy of the honest local models"),
        ("active_accuracy", "of those with more points than the average"),
        ("idle_accuracy", "of those with fewer"),
        ("distance_to_target", "||rho - target||"),
        ("distance_to_rival", "distance to the nearest other target"),
        ("distance_to_start", "||rho - rho_0||"),
        ("norm_rho", "||rho||"),
        ("honest_gradient_norm", "||sum of honest gradients||"),
        ("strategic_gradient_norm", "||sum of strategic gradients||"),
        ("rejections_total", "rejected reports, all rounds"),
        ("worst_residual_ever", "worst solver residual, all rounds"),
        ("unconverged_total", "local solves that missed their tolerance"),
        ("poisoned_points", "distinct poisoned queries"),
        ("poisoned_labels", "poisoned labels, total weight"),
        ("poisoned_residual", "residual of the poisoned data"),
        ("equilibrium_accuracy_true", "at equilibrium: accuracy on true labels"),
        ("equilibrium_accuracy_target", "at equilibrium: on the attacker's labels"),
        ("equilibrium_distance_to_target", "at equilibrium: ||rho* - target||"),
        ("equilibrium_gap", "||rho* - rho||"),
    ):
        if key in final:
            table.add_row(meaning, f"{final[key]:.4g}")
    table.add_row("steps of rho are", trend)
    table.add_row("rounds, seconds", f"{config.rounds}, {seconds:.1f}")
    Console(width=100, highlight=False).print(table)
