"""What a run comes to: the rounds it went through, the verdict on them, and where that is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfl_flower.attacks.table import ATTACKS, knowledge_of
from pfl_flower.run.attendance import CHECKS, Attendance
from pfl_flower.run.checks import Check
from pfl_flower.run.columns import Table
from pfl_flower.run.config import RunConfig
from pfl_flower.run.metrics import NODES_WORD, last_metrics
from pfl_flower.run.personalization import checked
from pfl_flower.run.places import SUMMARY_FILE
from pfl_flower.run.preset_claims import all_checks, claimed
from pfl_flower.run.rest_checks import rest_checks, told_rest
from pfl_flower.run.results import LIMIT_FILE, behaviour, summarise, write_json, write_limit
from pfl_flower.run.rounds import Numbers, numbers
from pfl_flower.run.served import USERS_FILE
from pfl_flower.run.tracking.harness import TRACKED, Tracked
from pfl_flower.support.files import replace_file, replacing
from pfl_flower.support.left_out import LeftOut
from pfl_flower.support.plugins import shown

TRAJECTORY_FILE = "trajectory.npy"
KEPT_CHECKS = CHECKS | {TRACKED}
"""Checks that rest on more than the numbers of the rounds: a run's summary keeps them."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """The rounds of a run.

    Attributes
    ----------
    text : str
        What ``rounds.csv`` says: of round 0, before the first, and of each round.
    rho : Tensor
        The global model after the last round, ``(d,)``.
    gradient : Tensor
        Sum of the strategic users' last accepted reports, ``(d,)``: what holds rho there.
    reported : mapping
        For each strategic user of whom a report was accepted, the round of the last.
    trajectory : Tensor or None
        rho of every round, ``(T + 1, d)``, with ``save-trajectory``.
    attendance : Attendance
        Who took part, and whose memory was whole.
    users : str
        What ``users.csv`` says, where users have test sets of their own.
    tracked : Tracked
        What the tracker raised.
    """

    text: str
    rho: Tensor
    gradient: Tensor
    reported: Mapping[int, int] = field(default_factory=dict)
    trajectory: Tensor | None = None
    attendance: Attendance = field(default_factory=Attendance)
    users: str = ""
    tracked: Tracked = field(default_factory=Tracked)

    @cached_property
    def rows(self) -> Numbers:
        """The numbers of ``rounds.csv``."""
        return numbers(self.text)

    def write(self, folder: Path) -> None:
        """Keep where rho was and the gradient that held it: a model attack's beginning."""
        if self.trajectory is not None:
            with replacing(folder / TRAJECTORY_FILE) as file:
                np.save(file, self.trajectory.cpu().numpy())
        if self.users:
            replace_file(folder / USERS_FILE, self.users)
        write_limit(folder / LIMIT_FILE, self.rho, self.gradient, self.reported)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run: what was measured, and whether that can be relied on.

    Attributes
    ----------
    config : RunConfig
        What was run.
    course : Course
        Its rounds.
    at_rest : dict
        The metrics of the exact equilibrium, with ``equilibrium``.
    device : torch.device
        Where it computed.
    radius : float
        Of what reports may be: of GRAD(rho), or a limit.
    seconds : float
        How long it took, from the first look at the nodes to the last metric.
    left_out : sequence of LeftOut
        What was there and did not count: of the data, and of what nodes sent.
    """

    config: RunConfig
    course: Course
    at_rest: Mapping[str, float] = field(default_factory=dict)
    device: torch.device
    seconds: float
    radius: float = math.inf
    left_out: Sequence[LeftOut] = ()

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The metrics after the last round, and those of the equilibrium."""
        return {**last_metrics(self.course.rows), **self.at_rest}

    @cached_property
    def checks(self) -> list[Check]:
        """What must hold of any run, and what is claimed of this one if it is a preset."""
        found = all_checks(self.config, self.course.rows, self.metrics, self.course.attendance)
        found += self.course.tracked.checks(self.config, self.course.text)
        return found + rest_checks(self.config, self.metrics, self.behaviour)

    @property
    def passed(self) -> bool:
        """Whether all of that holds."""
        return all(check.passed for check in self.checks)

    @property
    def nodes_word(self) -> list[str]:
        """The metrics that are the word of nodes whom nobody here vouches for: of a site alone."""
        return sorted(NODES_WORD & self.metrics.keys()) if self.config.site else []

    @property
    def behaviour(self) -> str:
        """How the steps of rho evolve: ``settling``, ``moving`` or ``diverging``."""
        return behaviour([row["step_norm"] for row in self.course.rows if "step_norm" in row])

    @property
    def rest(self) -> str:
        """What rho* is, where it was looked for: one minimiser, one of many, or none."""
        return told_rest(self.metrics)

    @property
    def reports(self) -> str:
        """What reports were held against."""
        config = self.config
        return checked(
            config.personalization, config.regularizer, self.radius, config.max_gradient_norm
        )

    def summary(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        return summarise(
            experiment=self.config.name,
            config=self.config.flat(),
            seeds=[self.config.seed],
            finals=[self.metrics],
            checks=self.checks,
            device=str(self.device),
            seconds=self.seconds,
            extra={
                "behaviour": self.behaviour,
                "estimator": self.config.estimator,
                "attack_knowledge": knowledge_told(self.config),
                "personalization": self.config.way.text,
                "reports": self.reports,
                "claims": claimed(self.config),
                "nodes_word": self.nodes_word,
                **({"equilibrium": self.rest} if self.at_rest else {}),
                **self._served(),
                "left_out": [asdict(one) for one in self.left_out],
            },
        )

    def _served(self) -> dict[str, Any]:
        """Return what the metrics of users' own test sets are, and of how many users."""
        users = Table.from_csv(self.course.users)
        if "theta" not in users:
            return {}
        measured = int(np.isfinite(users["theta"]).sum())
        of_all = {"users": len(users), "measured": measured}
        return {"own_test_sets": {"measure": str(users["measure"][0]), **of_all}}

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write ``summary.json`` and the figures, and return their paths."""
        # Drawing is dear to import, and most runs from Python write nothing.
        from pfl_flower.run import figures

        path = folder / SUMMARY_FILE
        write_json(path, self.summary())
        drawn = figures.run_figure([self.course.rows], title(self.config), folder)
        return (path, *drawn, *self._write_users(folder))

    def _write_users(self, folder: Path) -> tuple[Path, ...]:
        """Write the figure of how well users are served, where that was measured."""
        if not self.course.users:
            return ()
        users = Table.from_csv(self.course.users)
        if "theta" not in users:
            return (folder / USERS_FILE,)
        from pfl_flower.run.user_figures import served_figure

        return (folder / USERS_FILE, *served_figure(users, title(self.config), folder))


def knowledge_told(config: RunConfig) -> str:
    """Return what the run's attacker is given; empty where nobody attacks."""
    return knowledge_of(config) if config.strategic() else ""


def title(config: RunConfig) -> str:
    """Return a line on a run: what attacked what."""
    attack = "no attack"
    if config.strategic():
        key = ATTACKS.row(config.attack).told_by
        detail = str(config.flat()[key]) if key else ""
        detail = "from a CGA run" if "/" in detail else detail
        known = knowledge_told(config)
        details = [detail, "" if known == "own" else f"knows: {known}"]
        detail = ", ".join(one for one in details if one)
        attack = f"under {shown(config.attack)} attack" + (f" ({detail})" if detail else "")
    told = f"{shown(config.regularizer)}, lam = {config.lam:g}" if config.way.tied else ""
    way = "" if config.way.coupled else config.personalization
    return ", ".join(one for one in (config.dataset, way, told, attack) if one)
