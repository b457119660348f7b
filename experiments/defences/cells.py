"""The runs of a plan: one after another or side by side, each kept as soon as it is measured."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from experiments.defences.plan import HONEST, Cell, Plan
from experiments.paper.attack_limits import exact_limit
from experiments.running.preset_runs import may_keep
from experiments.studies.study import Setting
from pfl_flower import client_app, server_app
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.finished import Result
from pfl_flower.run.keys import Scalar
from pfl_flower.run.problem import build_problem
from pfl_flower.support.console import logged_to
from pfl_flower.support.threads import at_most
from pfl_flower.support.versions import commit
from pfl_flower.support.workers import Task, ending
from pfl_flower.transport.inprocess import InProcessGrid

ROWS_FILE = "cells.jsonl"
"""In a seed's folder: a line for each run, written when it ends."""
NODES = 2
Row = dict[str, Any]
"""What a run came to: rho, accuracies, seconds; or the error that it broke off with."""


def play(keys: Mapping[str, Scalar], honest: Sequence[int]) -> Row:
    """Run one configuration through the clients and the strategy of a real run.

    Returns
    -------
    dict
        ``rho`` and ``target``, lists of d numbers; ``accuracy`` and ``hacked`` of rho on the common
        test set, as it is and as the attacker labels it; by users ``honest``, on their own test
        sets, ``users`` (accuracies of theta_n) and ``own_rho`` (mean accuracy of rho); ``seconds``
        by the clock, and of the ``processor``; ``unsound``, the checks on the run that failed.
    """
    began, busy = time.perf_counter(), time.process_time()
    config = parse_config(keys)
    with at_most(1), logged_to(io.StringIO()):
        problem = build_problem(config)
        grid = InProcessGrid(client_app.app, nodes=NODES, run_config=config.flat())
        found = Result.of(server_app.run(grid, problem))
        target = problem.target.double().cpu().tolist()
    served = {row["user"]: row for row in found.users.rows()}
    ended = found.metrics
    return {
        "rho": found.rho.tolist(),
        "target": target,
        "accuracy": ended["accuracy_true"],
        "hacked": ended["accuracy_target"],
        "users": [float(served[user]["theta"]) for user in honest],
        "own_rho": sum(float(served[user]["rho"]) for user in honest) / len(honest),
        "seconds": time.perf_counter() - began,
        "processor": time.process_time() - busy,
        "unsound": [check.name for check in found.checks if not check.passed],
    }


@dataclass
class Cells:
    """The rows of one seed, in memory and in its folder.

    Attributes
    ----------
    setting : Setting
        How the study is asked to measure.
    plan : Plan
        What is to be run.
    rows : dict
        What was run, by the digest of what was asked.
    """

    setting: Setting
    plan: Plan
    rows: dict[str, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what is there from before."""
        self._limits: dict[str, str] = {}
        self._slowness: list[float] = []
        self._commit = commit()
        self._asked: dict[Cell, tuple[dict[str, Scalar], str]] = {}
        for row in _read(self._path):
            if may_keep(row, self.setting.options):
                self.rows[row["asked"]] = row

    @property
    def _path(self) -> Path:
        return self.setting.folder / ROWS_FILE

    def row(self, cell: Cell) -> Row | None:
        """Return what a cell came to, None before it was run."""
        return self.rows.get(self.asked(cell)[1])

    def asked(self, cell: Cell) -> tuple[dict[str, Scalar], str]:
        """Return a cell's whole configuration, and a digest of all of it but where files are."""
        if cell not in self._asked:
            keys = dict(self.plan.keys(cell, control=self.setting.control))
            if self.setting.options.rounds:
                keys["evaluate-every"] = self.setting.options.rounds
            if keys.get("attack") == "model":
                keys["attack-model"] = self._limit(cell, keys)
            options = self.setting.options
            flat = options.configure(keys, self.setting.folder, self.setting.seed, "run").flat()
            told = {key: value for key, value in flat.items() if _tells(key, value)}
            told |= {"code": options.study["code"]} if "code" in options.study else {}
            text = json.dumps(told, sort_keys=True, default=str)
            self._asked[cell] = flat, hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._asked[cell]

    def _limit(self, cell: Cell, keys: Mapping[str, Scalar]) -> str:
        """Return the model attack's folder, worked out once for a scene."""
        if cell.scene not in self._limits:
            bare = {k: v for k, v in keys.items() if not k.startswith(("aggregation", "attack"))}
            self._limits[cell.scene] = exact_limit(self.setting, bare)
        return self._limits[cell.scene]

    @property
    def slowness(self) -> float:
        """How many seconds by the clock one of the processor takes, as the machine is used now.

        The median over the runs of this sitting; 1 before any. What was kept from before was
        perhaps measured beside other work.
        """
        return median(self._slowness) if self._slowness else 1.0

    def waiting(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return those that were not run, of several that ask the same the first."""
        found: dict[str, Cell] = {}
        for cell in cells:
            digest = self.asked(cell)[1]
            if digest not in self.rows:
                found.setdefault(digest, cell)
        return list(found.values())

    def has(self, scene: str) -> bool:
        """Return whether all cells of a scene were run."""
        return all(self.row(cell) for cell in self.plan.cells if cell.scene == scene)

    def run(self, cells: Sequence[Cell], jobs: int, ended: Callable[[Cell], None]) -> None:
        """Run those cells that were not run; a run that breaks off is a row with its error.

        Parameters
        ----------
        cells : sequence of Cell
            What is to be run, in this order.
        jobs : int
            Processes that run cells side by side; with 1 all is done in this one.
        ended : callable
            Told of each cell when its row is written.
        """
        waiting = self.waiting(cells)
        tasks: list[Task] = [
            (play, (self.asked(cell)[0], tuple(range(HONEST)))) for cell in waiting
        ]
        with contextlib.closing(ending(tasks, jobs=jobs, threads=1)) as running:
            for done in running:
                cell = waiting[done.index]
                row: Row = {"error": done.error} if done.error else done.value
                if row.get("processor", 0.0) > 0:
                    self._slowness.append(row["seconds"] / row["processor"])
                self._keep(cell, row)
                ended(cell)

    def _keep(self, cell: Cell, row: Row) -> None:
        digest = self.asked(cell)[1]
        whole = {"cell": list(cell), "asked": digest, "commit": self._commit, **row}
        self.rows[digest] = whole
        self.setting.folder.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            # A line that was cut off ends before the next one begins.
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            begin = b"" if file.read(1) in (b"", b"\n") else b"\n"
            file.write(begin + json.dumps(whole).encode() + b"\n")


PLACES = frozenset({"output-dir", "name", "attack-model", "data-dir", "state-dir"})
"""Keys that say where files are, and not what is run."""


def _tells(key: str, value: Scalar) -> bool:
    """Return whether a key tells runs apart: one that was added since, at its default, does not."""
    return key not in PLACES and RunConfig.model_fields[key.replace("-", "_")].default != value


def _read(path: Path) -> Iterator[Row]:
    """Yield the whole lines of a file; one that was cut off is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "asked" in row:
            yield row
