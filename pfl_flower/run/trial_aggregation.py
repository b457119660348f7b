"""A rule of one's own makes a direction: of rows, or twice, from its state of the round before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfl_flower.aggregation.combination import RunningRule, configured_rule
from pfl_flower.aggregation.rounds import form_fault, is_told_f, sees_rounds
from pfl_flower.aggregation.rows import Rows
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.run.problem import Problem
from pfl_flower.run.server_setup import ServerSetup
from pfl_flower.run.tried import Tried, made_up
from pfl_flower.support.errors import ConfigError

ROWS = 64
"""Most rows that a rule is tried on, unless it withstands so many that it needs more."""


class Rehearsal(ServerSetup):
    """What a rule is made of in a trial: the server's own user solves nothing."""

    def root(self, rho: Tensor, theta: Tensor, points: int, round: int) -> tuple[Tensor, Tensor]:
        """Return some report in GRAD(rho), and a model."""
        found = made_up(self.problem, 2, len(rho), words=("root", round))
        return self.problem.plausible.project(found[0]), found[1]


def try_rule(problem: Problem) -> None:
    """Try an aggregation of one's own on rows as the server has them.

    Raises
    ------
    ConfigError
        If it raises, its answer is no direction, or its state none that a checkpoint keeps.
    """
    config = problem.config
    if AGGREGATIONS.row(config.aggregation) is not AGGREGATIONS.own:
        return
    tried = Tried(AGGREGATIONS.point, config.aggregation)
    count = min(config.sample_size(), max(ROWS, 2 * config.tolerance() + 3))
    rows = made_up(problem, count, problem.model.dim, words=("rows",))
    rows = problem.plausible.project(rows)
    before = rows.clone()
    if sees_rounds(AGGREGATIONS.load(config.aggregation)):
        _try_rounds(problem, tried, rows)
    else:
        with tried.working("a rule"):
            direction = configured_rule(config)(rows)
        tried.tensor("a direction", direction, (problem.model.dim,), rows)
    if not bool((rows == before).all()):
        raise tried.refusal("a rule that leaves the rows as they are")
    _check_tolerance(config)


def _try_rounds(problem: Problem, tried: Tried, rows: Tensor) -> None:
    """Make a rule with init and update, and have it answer in two rounds."""
    users, rho = torch.arange(len(rows)), made_up(problem, problem.model.dim, words=("rho",))
    with tried.working("a factory and an init"):
        running = RunningRule(problem.config, Rehearsal(problem), rho)
    right = tried.memory(running.state)
    for round in (1, 2):
        rule = running.at(round, rho)
        assert not callable(rule)
        with tried.working("an update"):
            answer: Any = rule.answer(Rows(users, rows))
        if not isinstance(answer, tuple) or len(answer) != 2:
            kind = type(answer).__name__
            raise tried.refusal(
                f"an update that returns a direction and a state, and it returns a {kind}"
            )
        tried.tensor("a direction", answer[0], (problem.model.dim,), rows)
        if fault := form_fault(right, tried.memory(answer[1])):
            raise tried.refusal(fault)
        running.state = answer[1]


def _check_tolerance(config: Any) -> None:
    if config.aggregation_tolerance == "" or config.aggregation_mixing:
        return
    if not is_told_f(AGGREGATIONS.load(config.aggregation)):
        raise ConfigError(
            f"aggregation-tolerance = {config.aggregation_tolerance}: expected empty, for "
            f"{config.aggregation}, which has no parameter tolerance"
        )
