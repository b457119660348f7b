"""Turns rounds into records."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from logging import INFO, WARNING
from pathlib import Path
from typing import Self

import torch
from flwr.app import ArrayRecord, MetricRecord
from torch import Tensor

from pfl_flower.run.attendance import HONEST_NODE, Attendance
from pfl_flower.run.evaluation import Evaluation
from pfl_flower.run.outcome import Course
from pfl_flower.run.problem import Problem
from pfl_flower.run.rounds import Rounds, Row, Watch, all_columns, unwatched
from pfl_flower.run.served import columns
from pfl_flower.run.tracking.harness import UNTRACKED, Tracking
from pfl_flower.run.triggered import columns as triggered_columns
from pfl_flower.run.user_book import UserBook
from pfl_flower.run.writing import begin_folder
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.users import among, ascending
from pfl_flower.transport.broadcasts import unpack_rho
from pfl_flower.transport.flower_internals import log
from pfl_flower.transport.wire import filled
from strategies.checkpoint import CHECKPOINT_FILE, Checkpoint, write_checkpoint
from strategies.checkpoint_loading import Expected, load_checkpoint
from strategies.journal import Journal
from strategies.last_reports import LastReports
from strategies.round_record import RoundRecord, counts
from strategies.server_state import ServerState


class Bookkeeper:
    """Turns what the strategy reports and the server measures into the course of a run.

    Parameters
    ----------
    problem : Problem
        What is run; its ``resume`` may name a checkpoint, whose books it goes on with.
    folder : Path or None
        Where ``rounds.csv`` and checkpoints are written; None for nowhere.
    watch : callable
        Called with each round's number and what was measured of rho.
    tracked : Path or None
        Where the tracker may write, if the run itself writes elsewhere or nowhere.

    Raises
    ------
    ConfigError
        If checkpoints are asked for where nothing is written, the one to go on from cannot be
        used, or the tracker cannot be made.
    """

    def __init__(
        self,
        problem: Problem,
        folder: Path | None = None,
        watch: Watch = unwatched,
        tracked: Path | None = None,
    ) -> None:
        self.config, self.folder, self.watch = problem.config, folder, watch
        self.points = problem.points
        if folder is None and self.config.checkpoint_every:
            every = self.config.checkpoint_every
            raise ConfigError(f"checkpoint-every = {every}: expected 0 where nothing is written")
        more = columns() if problem.source.tested else ()
        more += triggered_columns() if problem.backdoor is not None else ()
        found = load_checkpoint(self.config, Expected.of(problem, all_columns(more)))
        self.saved = None if found is None else found.server
        self.evaluation = Evaluation.of(problem)
        self.trajectory: list[Tensor] = []
        self.rho = self._previous = problem.initial
        self._reported = LastReports()
        self._measured: dict[str, float] = {}
        if folder is not None:
            begin_folder(folder, self.config, resumed=found is not None)
        self.journal = None if folder is None else Journal(folder)
        self.attendance = Attendance()
        self.rounds = Rounds(folder, "" if found is None else found.records.rounds, more)
        self.users = UserBook(problem)
        if found is not None:
            self._resume(found)
        first = 0 if found is None else found.server.round + 1
        self.tracking = Tracking.of(self.config, folder or tracked, first=first)

    def __enter__(self) -> Self:
        """Return the bookkeeper."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close ``rounds.csv``, and the tracker of a run that broke off."""
        self.rounds.close()
        self._end_tracking()

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Measure rho; called by the strategy before the first round and after each."""
        rho = unpack_rho(arrays).to(self._previous.device)
        self._measured = self.evaluation(rho)
        if self.config.save_trajectory:
            self.trajectory.append(rho)
        if server_round == 0:
            self._write(0, {"seed": self.config.seed, "round": 0, **self._measured})
        return filled(MetricRecord, self._measured)

    def close_round(self, record: RoundRecord) -> None:
        """Write the row of a finished round and say how it went."""
        sums = {"honest": record.honest_sum, "strategic": record.strategic_sum}
        vectors = {f"{side}_gradient_norm": total for side, total in sums.items()}
        vectors["step_norm"] = record.rho - self._previous
        vectors["gradient_norm"] = record.honest_sum + record.strategic_sum
        self._write(
            record.round,
            {
                "seed": self.config.seed,
                "round": record.round,
                "eta": record.eta,
                **self._measured,
                **_norms(vectors),
                "accepted": len(record.accepted),
                "rejections": len(record.rejections),
                "honest_reports": record.honest_reports,
                "honest_missing": record.honest_missing,
                "honest_unheard": record.honest_unheard,
                "rejection_reasons": counts(record.reasons()),
                "worst_residual": record.metrics.worst_residual,
                "unconverged": record.metrics.unconverged,
                **_local(record, self.points),
                **self.users.measured(record.served, record.triggered, record.strategic),
                **_poison(record),
                "seconds": record.seconds,
            },
            record.notices,
        )
        self._attend(record)
        self.rho = self._previous = record.rho
        self._reported.add(record)
        self.watch(record.round, self._measured)
        self._log(record)

    def save_checkpoint(self, state: ServerState) -> None:
        """Write the server's state and the records so far in place of the last checkpoint."""
        if self.folder is None or self.journal is None:
            return
        path = self.folder / CHECKPOINT_FILE
        write_checkpoint(
            path,
            self.config,
            state,
            attendance=self.attendance,
            reported=self._reported,
            journal=self.journal.add(self.rounds, self.trajectory),
        )
        self.journal.forget_others()
        log(INFO, "round %d: checkpoint in %s", state.round, path)

    def course(self) -> Course:
        """Return the rounds so far, of which no more are told to the tracker."""
        self._end_tracking()
        return Course(
            text=self.rounds.text,
            rho=self.rho,
            attendance=self.attendance,
            gradient=self._reported.total(torch.zeros_like(self.rho)),
            reported=self._reported.by_user,
            trajectory=torch.stack(self.trajectory) if self.trajectory else None,
            users=self.users.text,
            tracked=self.tracking.tracked,
        )

    def _write(self, round: int, row: Row, notices: Mapping[str, int] | None = None) -> None:
        """Tell the tracker of a round, and write its row: also whether the tracker took it."""
        events = Counter(notices or {})
        if wrong := self.tracking.row(round, row):
            log(WARNING, "round %d: tracker = %s: %s", round, self.config.tracker, wrong)
            events[UNTRACKED] += 1
        self.rounds.write({**row, "notices": counts(events) or None})

    def _end_tracking(self) -> None:
        if wrong := self.tracking.close():
            log(WARNING, "tracker = %s: its end failed: %s", self.config.tracker, wrong)

    def _resume(self, checkpoint: Checkpoint) -> None:
        records = checkpoint.records
        self.rho = self._previous = checkpoint.server.rho
        self.attendance = records.attendance
        self._reported = records.reported
        self.trajectory = list(records.trajectory if records.trajectory is not None else [])

    def _attend(self, record: RoundRecord) -> None:
        """Note who took part in a round, and whose memory was not whole."""
        named, missing = self.config.strategic(), record.missing
        users = record.accepted.users
        came = {
            *users[among(users, ascending(named))].tolist(),
            *named.intersection(record.implausible),
        }
        # What a node of a site says it is, decides nothing.
        honest = set() if self.config.site else came - record.strategic
        self.attendance.hear(came - honest)
        for user in honest:
            self.attendance.miss(user, HONEST_NODE)
        for user in named & missing.keys():
            self.attendance.miss(user, missing[user])
        for user, (had, due) in record.lost.items():
            self.attendance.lose(record.round, user, had=had, due=due)
        self.attendance.not_keep(record.round, record.unkept)

    def _log(self, record: RoundRecord) -> None:
        shown = ("distance_to_target", "accuracy_true", "accuracy_target")
        values = "  ".join(
            f"{key} {self._measured[key]:.4g}" for key in shown if key in self._measured
        )
        log(INFO, "round %d/%d  %s", record.round, self.config.rounds, values)


def _norms(vectors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the vectors' lengths, which are read at once: a card is waited for at each look."""
    lengths = torch.linalg.vector_norm(torch.stack(list(vectors.values())), dim=1)
    return dict(zip(vectors, lengths.tolist(), strict=True))


def _local(record: RoundRecord, points: tuple[int, ...]) -> dict[str, float]:
    """Return the mean accuracies of local models: all, and those with more, or fewer, points."""
    if not record.accuracies:
        return {}
    known = {user: value for user, value in record.accuracies.items() if user < len(points)}
    measured = {"local_accuracy": statistics.fmean(record.accuracies.values())}
    if not known:
        return measured
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
