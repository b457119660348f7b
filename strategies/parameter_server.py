"""The parameter server of Section 2.2 as a Flower strategy: broadcast, check, sum, step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from logging import INFO

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from pfl_flower.aggregation import AGGREGATIONS, Aggregation, RowCheck, combine
from pfl_flower.messages import (
    Broadcast,
    NodeMetrics,
    pack_broadcast,
    pack_request,
    pack_rho,
    unpack_rho,
)
from pfl_flower.problem import Problem, resolve
from pfl_flower.robust import bind
from pfl_flower.rows import Rows
from pfl_flower.seeding import generator
from pfl_flower.server_steps import ServerOptimizer, StepSizes
from strategies.intake import Form, Intake, read_replies
from strategies.records import RoundRecord
from strategies.roster import (
    SETTLE_SECONDS,
    NodesMissingError,
    Roster,
    ask_roles,
    assign_users,
    wait_for_nodes,
)


@dataclass
class _Standing:
    """What the server remembers of past rounds; of each user the round it was last accepted in."""

    last_accepted: Tensor
    eta_sum: float = 0.0
    honest_sum: Tensor | None = None


class ParameterServer(Strategy):
    """Personalised federated gradient descent with a check of every report.

    Parameters
    ----------
    problem : Problem
        Regulariser, dimensions and run configuration.
    on_round : callable, optional
        Called with every ``RoundRecord``, after the round.

    Notes
    -----
    Override ``participants`` to ask other users in a round, and ``configure_train`` and
    ``aggregate_train`` as in any Flower strategy. rho, not a mean of models, is what travels in
    ``arrays``.
    """

    def __init__(
        self, problem: Problem, *, on_round: Callable[[RoundRecord], None] | None = None
    ) -> None:
        config = problem.config
        self.problem, self.on_round = problem, on_round
        self.settle = SETTLE_SECONDS
        self.step_sizes = configured_step_sizes(problem)
        self.scale = config.sample_scale()
        self.optimizer = ServerOptimizer(config.server_optimizer)
        self.rule = configured_rule(problem)
        self.check = RowCheck(
            regularizer=problem.regularizer,
            rtol=config.gradient_rtol,
            max_norm=config.max_gradient_norm,
        )
        self.roster: Roster | None = None
        self._everyone = frozenset(range(config.users))
        self._standing = _Standing(torch.zeros(config.users, dtype=torch.int64))
        self._rho = problem.initial
        self._asked: list[tuple[Message, tuple[int, ...]]] = []
        self._record: RoundRecord | None = None

    def recruit(self, grid: Grid) -> Roster:
        """Wait for the nodes, ask for their roles, and lay out the users.

        Raises
        ------
        NodesMissingError
            If fewer than ``min-nodes`` came or none can take part.
        """
        config = self.problem.config
        nodes = wait_for_nodes(grid, config.min_nodes, config.node_timeout, self.settle)
        roles = ask_roles(grid, nodes, config.reply_timeout)
        if len(roles) < config.min_nodes:
            raise NodesMissingError(
                f"min-nodes = {config.min_nodes}: {len(roles)} of {len(nodes)} nodes can take part"
            )
        roster = assign_users(config.users, config.strategic(), roles)
        log(
            INFO,
            "%d users on %d nodes, strategic: %s",
            config.users,
            len(roster.nodes),
            sorted(roster.strategic) or "none",
        )
        return roster

    def participants(self, round: int) -> frozenset[int]:
        """Return the users asked in a round: a pure function of the seed and the round."""
        config = self.problem.config
        if config.participation == 1:
            return self._everyone
        draw = generator(config.seed, "participation", round)
        order = torch.randperm(config.users, generator=draw)
        return frozenset(order[: config.sample_size()].tolist())

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run ``num_rounds`` rounds; Flower's own loop with a roster before it and less to read."""
        self.summary()
        self.roster = self.recruit(grid)
        train_config = train_config or ConfigRecord()
        evaluate_config = evaluate_config or ConfigRecord()
        result, arrays = Result(arrays=initial_arrays), initial_arrays
        if evaluate_fn and (metrics := evaluate_fn(0, arrays)) is not None:
            result.evaluate_metrics_serverapp[0] = metrics
        for current in range(1, num_rounds + 1):
            began = time.perf_counter()
            messages = list(self.configure_train(current, arrays, train_config, grid))
            replies = grid.send_and_receive(messages, timeout=timeout)
            new_arrays, train_metrics = self.aggregate_train(current, replies)
            if new_arrays is not None:
                result.arrays = arrays = new_arrays
            if train_metrics is not None:
                result.train_metrics_clientapp[current] = train_metrics
            questions = list(self.configure_evaluate(current, arrays, evaluate_config, grid))
            answers = grid.send_and_receive(questions, timeout=timeout) if questions else []
            if (local := self.aggregate_evaluate(current, answers)) is not None:
                result.evaluate_metrics_clientapp[current] = local
            if evaluate_fn and (metrics := evaluate_fn(current, arrays)) is not None:
                result.evaluate_metrics_serverapp[current] = metrics
            self._close_round(time.perf_counter() - began)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one broadcast per node that has a user to ask."""
        if self.roster is None:
            self.roster = self.recruit(grid)
        self._rho = unpack_rho(arrays).to(self.problem.device)
        asked = self.participants(server_round)
        self._asked = []
        for node, members in self.roster.nodes.items():
            users = members
            if asked is not self._everyone:
                users = tuple(user for user in members if user in asked)
            if users:
                broadcast = self._broadcast(server_round, users, members)
                content = pack_broadcast(broadcast, arrays)
                message = Message(content, node, MessageType.TRAIN, group_id=str(server_round))
                self._asked.append((message, users))
        return [message for message, _ in self._asked]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every reply, combine the rows that count, and step rho."""
        eta = self.step_sizes.at(server_round)
        intake = self.intake(server_round, replies)
        rows = Rows.of(intake.rows).to(self.problem.device)
        direction, accepted, overflow = combine(rows, self._rho, eta * self.scale, self.rule)
        rejections = sorted([*intake.rejections, *overflow], key=lambda fault: fault.user)
        rho = self.optimizer.step(self._rho, self.scale * direction, eta)
        self._record = RoundRecord(
            round=server_round,
            eta=eta,
            rho=rho,
            accepted=accepted,
            rejections=rejections,
            strategic=self.roster.strategic if self.roster else frozenset(),
            metrics=intake.metrics,
        )
        self._remember(self._record)
        self._record.log_faults()
        metrics = MetricRecord(
            {
                "accepted": len(accepted),
                "rejections": len(rejections),
                "worst-residual": self._record.metrics.worst_residual,
            }
        )
        return pack_rho(rho), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return questions to honest nodes, each ``evaluate-every`` rounds and at the end."""
        run = self.problem.config
        due = run.evaluate_every and server_round % run.evaluate_every == 0
        if self.roster is None or not run.evaluate_every or not (due or server_round == run.rounds):
            return []
        return [
            Message(
                pack_request(server_round, users),
                node,
                MessageType.EVALUATE,
                group_id=str(server_round),
            )
            for node, users in self.roster.nodes.items()
            if not set(users) <= self.roster.strategic
        ]

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the mean accuracy of the local models that answered."""
        said = [NodeMetrics.unpack(reply.content) for reply in replies if reply.has_content()]
        accuracies = NodeMetrics.merge(said).accuracies
        if not accuracies:
            return None
        if self._record is not None:
            self._record.accuracies = accuracies
        return MetricRecord({"local-accuracy": statistics.fmean(accuracies.values())})

    def summary(self) -> None:
        """Log what is about to run."""
        config = self.problem.config
        log(
            INFO,
            "ParameterServer: %s, lam = %g, %s, %d parameters, %s steps from eta = %.4g",
            config.regularizer,
            config.lam,
            config.dataset,
            self.problem.model.dim,
            config.server_optimizer,
            self.step_sizes.at(1),
        )

    def _broadcast(self, round: int, users: tuple[int, ...], members: tuple[int, ...]) -> Broadcast:
        standing, strategic = self._standing, self.roster.strategic if self.roster else frozenset()
        given = self.problem.config.estimator == "oracle" and not strategic.isdisjoint(users)
        return Broadcast(
            round=round,
            users=users,
            last_accepted=tuple(standing.last_accepted[torch.tensor(users)].tolist()),
            rho=self._rho,
            eta=self.step_sizes.at(round) * self.scale,
            eta_sum=standing.eta_sum,
            honest_sum=standing.honest_sum if given else None,
            members=members,
        )

    def intake(self, server_round: int, replies: Iterable[Message]) -> Intake:
        """Return the rows of the replies that may count, and why the others do not."""
        form = Form(server_round, self.problem.model.dim, self.problem.dtype)
        return read_replies(self._asked, replies, form=form, check=self.check)

    def _remember(self, record: RoundRecord) -> None:
        standing = self._standing
        standing.eta_sum += record.eta * self.scale
        standing.last_accepted[record.accepted.users] = record.round
        standing.honest_sum = record.gradient_sum(strategic=False)

    def _close_round(self, seconds: float) -> None:
        if self._record is not None:
            self._record.seconds = seconds
            if self.on_round is not None:
                self.on_round(self._record)


def configured_step_sizes(problem: Problem) -> StepSizes:
    """Return the step sizes of a run."""
    config = problem.config
    if config.server_lr == "auto":
        summed = config.users if config.participation_rescale else config.sample_size()
        return StepSizes.auto(problem.regularizer, summed, config.server_lr_factor)
    return StepSizes(
        first=config.server_lr * config.server_lr_factor,
        decay=config.server_lr_decay,
        floor=config.server_lr_floor,
    )


def configured_rule(problem: Problem) -> Aggregation:
    """Return what makes one direction of the rows of a run, its parameters given."""
    config = problem.config
    return bind(
        resolve("aggregation", config.aggregation, AGGREGATIONS),
        tolerance=config.tolerance(),
        selected=config.krum_selected,
        radius=config.clipping_radius,
        mixing=config.aggregation_mixing,
    )
