"""The Flower ServerApp: one run from its configuration to its results."""

from __future__ import annotations

import statistics
import time
from logging import ERROR, INFO
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pfl_flower.config import ConfigError, RunConfig, parse_config
from pfl_flower.evaluation import Evaluation
from pfl_flower.figures import run_figure
from pfl_flower.messages import pack_rho, unpack_rho
from pfl_flower.problem import Problem, build_problem
from pfl_flower.results import (
    LIMIT_FILE,
    Check,
    RoundsFile,
    behaviour,
    read_rounds,
    say,
    summarise,
    write_json,
    write_limit,
)
from pfl_flower.sources import DataError
from pfl_flower.yardstick import measure_equilibrium
from strategies.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    Records,
    ServerState,
    load_checkpoint,
    write_checkpoint,
)
from strategies.parameter_server import ParameterServer
from strategies.records import RoundRecord, counts
from strategies.roster import NodesMissingError

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


class Bookkeeper:
    """Turns what the strategy reports and the server measures into the rows of ``rounds.csv``."""

    def __init__(self, problem: Problem, rounds: RoundsFile) -> None:
        self.config, self.rounds = problem.config, rounds
        self.evaluation = Evaluation.of(problem)
        self.trajectory: list[Tensor] = []
        self.rho = self._previous = problem.initial
        self._strategic_sum = torch.zeros_like(problem.initial)
        self._measured: dict[str, float] = {}

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Measure rho; called by the strategy before the first round and after each."""
        rho = unpack_rho(arrays).to(self._previous.device)
        self._measured = self.evaluation(rho)
        if self.config.save_trajectory:
            self.trajectory.append(rho)
        if server_round == 0:
            self.rounds.write({"seed": self.config.seed, "round": 0, **self._measured})
        return MetricRecord(dict(self._measured))

    def close_round(self, record: RoundRecord) -> None:
        """Write the row of a finished round and say how it went."""
        sums = {"honest": record.honest_sum, "strategic": record.strategic_sum}
        norms = {f"{side}_gradient_norm": _norm(total) for side, total in sums.items()}
        self.rounds.write(
            {
                "seed": self.config.seed,
                "round": record.round,
                "eta": record.eta,
                **self._measured,
                "step_norm": _norm(record.rho - self._previous),
                "gradient_norm": _norm(record.honest_sum + record.strategic_sum),
                **norms,
                "accepted": len(record.accepted),
                "rejections": len(record.rejections),
                "rejection_reasons": counts(record.reasons()),
                "notices": counts(record.notices),
                "worst_residual": record.metrics.worst_residual,
                "unconverged": record.metrics.unconverged,
                **_local(record, self.config.points()),
                **_poison(record),
                "seconds": record.seconds,
            }
        )
        self.rho = self._previous = record.rho
        self._strategic_sum = record.strategic_sum
        self._log(record)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint left off."""
        records = checkpoint.records
        self.rho = self._previous = checkpoint.server.rho
        self._strategic_sum = records.strategic_sum
        self.trajectory = list(records.trajectory if records.trajectory is not None else [])

    def save_checkpoint(self, state: ServerState) -> None:
        """Write the server's state and the records so far in place of the last checkpoint."""
        records = Records(
            rounds=self.rounds.path.read_bytes().decode(),
            strategic_sum=self._strategic_sum,
            trajectory=torch.stack(self.trajectory) if self.trajectory else None,
        )
        path = self.config.folder() / CHECKPOINT_FILE
        write_checkpoint(path, self.config, Checkpoint(state, records))
        log(INFO, "round %d: checkpoint in %s", state.round, path)

    def save_limit(self, path: Path) -> None:
        """Keep the last rho and the strategic users' last gradient: a model attack's beginning."""
        write_limit(path, self.rho, self._strategic_sum)

    def _log(self, record: RoundRecord) -> None:
        shown = ("distance_to_target", "accuracy_true", "accuracy_target")
        values = "  ".join(
            f"{key} {self._measured[key]:.4g}" for key in shown if key in self._measured
        )
        log(INFO, "round %d/%d  %s", record.round, self.config.rounds, values)


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))


def _local(record: RoundRecord, points: tuple[int, ...]) -> dict[str, float]:
    """Return the mean accuracies of local models: all, and those with more, or fewer, points."""
    if not record.accuracies:
        return {}
    known = {user: value for user, value in record.accuracies.items() if user < len(points)}
    measured = {"local_accuracy": statistics.fmean(record.accuracies.values())}
    mean = statistics.fmean(points)
    for side, more in (("active", True), ("idle", False)):
        values = [value for user, value in known.items() if (points[user] > mean) == more]
        if values and len(values) < len(known):
            measured[f"{side}_accuracy"] = statistics.fmean(values)
    return measured


def _poison(record: RoundRecord) -> dict[str, float]:
    said = record.metrics
    if not said.poisoned_points:
        return {}
    return {
        "poisoned_points": said.poisoned_points,
        "poisoned_labels": said.poisoned_labels,
        "poisoned_residual": said.poisoned_residual,
    }


def last_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return a run's metrics: its last row, totals over rounds, the worst residual of all."""
    final = {key: value for key, value in rows[-1].items() if key not in ("seed", "round", "eta")}
    if "target_accuracy" in final:
        final["target_gap"] = final["target_accuracy"] - final["accuracy_target"]
    evaluated = ("local_accuracy", "active_accuracy", "idle_accuracy")
    local = {key: row[key] for row in rows for key in evaluated if key in row}
    return {
        **final,
        **local,
        "rejections_total": sum(row.get("rejections", 0) for row in rows),
        "unconverged_total": sum(row.get("unconverged", 0) for row in rows),
        "worst_residual_ever": max(row.get("worst_residual", 0.0) for row in rows),
        "seconds_total": sum(row.get("seconds", 0.0) for row in rows),
    }


def sanity_checks(config: RunConfig, rows: list[dict[str, float]]) -> list[Check]:
    """Return what must hold of any run: all rounds done, rho finite, solves within tolerance."""
    final = last_metrics(rows)
    checks = [
        Check(
            "rounds", rows[-1]["round"], f"== {config.rounds}", rows[-1]["round"] == config.rounds
        ),
        Check("finite", final["norm_rho"], "finite", bool(np.isfinite(final["norm_rho"]))),
    ]
    if config.local_solver == "exact":
        missed = final["unconverged_total"]
        checks.append(Check("unconverged_total", missed, "== 0", missed == 0))
    return checks


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


def figure_title(config: RunConfig) -> str:
    """Return the line over a run's figure: what attacked what."""
    attack = "no attack"
    if config.strategic():
        how = {"cga": config.estimator, "data": config.poisoning, "model": config.attack_model}
        detail = how.get(config.attack, "")
        detail = "from a CGA run" if "/" in detail else detail
        attack = f"under {config.attack} attack" + (f" ({detail})" if detail else "")
    return f"{config.dataset}, {config.regularizer}, lam = {config.lam:g}, {attack}"


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
