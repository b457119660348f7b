"""The parameter server of Section 2.2 as a Flower strategy: broadcast, check, sum, step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from logging import INFO, WARNING
from uuid import uuid4

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from pfl_flower.aggregation.combination import combine, configured_rule
from pfl_flower.aggregation.reports import RowCheck
from pfl_flower.aggregation.rows import Rows, ids
from pfl_flower.aggregation.server_steps import ServerOptimizer, StepSizes
from pfl_flower.run.problem import Problem
from pfl_flower.support.errors import NodesMissingError
from pfl_flower.support.seeding import generator
from pfl_flower.transport.flower_internals import log
from pfl_flower.transport.messages import (
    Broadcast,
    Session,
    pack_broadcast,
    pack_request,
    pack_rho,
    unpack_rho,
)
from pfl_flower.transport.node_metrics import NodeMetrics
from strategies.checkpoint import ServerState, Standing
from strategies.recruiting import Recruiter
from strategies.replies import Form, Intake, read_replies
from strategies.roster import Roster
from strategies.round_record import RoundRecord


class ParameterServer(Strategy):
    """Personalised federated gradient descent with a check of every report.

    Parameters
    ----------
    problem : Problem
        Regulariser, dimensions and run configuration.
    on_round : callable, optional
        Called with every ``RoundRecord``, after the round.
    on_checkpoint : callable, optional
        Called with the ``ServerState`` to keep, each ``checkpoint-every`` rounds, after the last
        round, and when too few nodes are left.
    saved : ServerState, optional
        Where to go on from.

    Notes
    -----
    Override ``participants`` to ask other users in a round, and ``configure_train`` and
    ``aggregate_train`` as in any Flower strategy. rho, not a mean of models, is what travels in
    ``arrays``.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        on_round: Callable[[RoundRecord], None] | None = None,
        on_checkpoint: Callable[[ServerState], None] | None = None,
        saved: ServerState | None = None,
    ) -> None:
        config = problem.config
        self.problem, self.on_round = problem, on_round
        self.on_checkpoint, self.saved = on_checkpoint, saved
        self.recruiter = Recruiter(config)
        self.step_sizes = configured_step_sizes(problem)
        self.scale = config.sample_scale()
        self.optimizer = ServerOptimizer(config.server_optimizer)
        self.rule = configured_rule(config)
        self.check = RowCheck(
            regularizer=problem.regularizer,
            rtol=config.gradient_rtol,
            max_norm=config.max_gradient_norm,
        )
        self.roster: Roster | None = None
        self._everyone = frozenset(range(config.users))
        self._present: frozenset[int] = frozenset()
        self._standing = Standing.fresh(config.users)
        self._session = Session()
        self._rho = problem.initial
        self._asked: list[tuple[Message, tuple[int, ...]]] = []
        self._questions: list[tuple[Message, tuple[int, ...]]] = []
        self._record: RoundRecord | None = None

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
        train_config = train_config or ConfigRecord()
        evaluate_config = evaluate_config or ConfigRecord()
        arrays = self.begin(grid, initial_arrays)
        done = self._session.resumed
        result = Result(arrays=arrays)
        if done == 0 and evaluate_fn and (metrics := evaluate_fn(0, arrays)) is not None:
            result.evaluate_metrics_serverapp[0] = metrics
        for current in range(done + 1, num_rounds + 1):
            began = time.perf_counter()
            self._attend(grid, current)
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
            self._close_round(current, time.perf_counter() - began, last=num_rounds)
        return result

    def begin(self, grid: Grid, arrays: ArrayRecord) -> ArrayRecord:
        """Recruit the nodes, and return the arrays of the first round, or of the one to resume.

        Raises
        ------
        NodesMissingError
            If fewer than ``min-nodes`` came or none can take part.
        """
        saved = self.saved
        done = 0 if saved is None else saved.round
        if saved is not None or self.problem.config.checkpoint_every:
            self._session = Session(uuid4().hex, done, done)
        if saved is None:
            self.roster = self.recruiter.begin(grid)
            return arrays
        self.roster = self.recruiter.resume(grid, saved.roster, done)
        self._rho, self._standing = saved.rho, saved.standing
        self.optimizer.restore(saved.rho, saved.optimizer)
        log(INFO, "resumed after round %d", done)
        held = {user for said in self.recruiter.nodes.values() for user in said.holds}
        met = self._standing.last_accepted.nonzero().flatten().tolist()
        if lost := sorted(set(met) - held):
            log(WARNING, "no node holds the memory of users %s: they start anew", lost)
        return pack_rho(saved.rho)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one broadcast per node that has a user to ask."""
        if self.roster is None:
            self.roster = self.recruiter.begin(grid)
            self._present = frozenset(self.roster.nodes)
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
        # Flower would wait in vain for a node that it knows to be gone.
        return [m for m, _ in self._asked if m.metadata.dst_node_id in self._present]

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
            notices=intake.notices,
        )
        self._remember(self._record)
        self._rho = rho
        self._record.log_faults()
        metrics = MetricRecord(
            {
                "accepted": len(accepted),
                "rejections": len(rejections),
                "worst-residual": self._record.metrics.worst_residual,
                **{f"rejected-{reason}": n for reason, n in self._record.reasons().items()},
                **{f"left-out-{kind}": n for kind, n in intake.notices.items()},
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
        self._questions = []
        for node, users in self.roster.nodes.items():
            if node in self._present and not self.roster.strategic.issuperset(users):
                content, tag = pack_request(server_round, users), str(server_round)
                message = Message(content, node, MessageType.EVALUATE, group_id=tag)
                self._questions.append((message, users))
        return [message for message, _ in self._questions]

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the mean accuracy of the local models that answered."""
        asked = {message.metadata.message_id: users for message, users in self._questions}
        said = [
            NodeMetrics.unpack(reply.content, asked.get(reply.metadata.reply_to_message_id, ()))
            for reply in replies
            if reply.has_content()
        ]
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
            last_accepted=tuple(standing.last_accepted[ids(users)].tolist()),
            rho=self._rho,
            eta=self.step_sizes.at(round) * self.scale,
            eta_sum=standing.eta_sum,
            honest_sum=standing.honest_sum if given else None,
            members=members,
            session=self._session,
        )

    def intake(self, server_round: int, replies: Iterable[Message]) -> Intake:
        """Return the rows of the replies that may count, and why the others do not."""
        form = Form(server_round, self.problem.model.dim, self.problem.dtype)
        return read_replies(self._asked, replies, form=form, check=self.check)

    def _remember(self, record: RoundRecord) -> None:
        standing = self._standing
        standing.eta_sum += record.eta * self.scale
        standing.last_accepted[record.accepted.users] = record.round
        standing.honest_sum = record.honest_sum

    def _attend(self, grid: Grid, round: int) -> None:
        """See who is there; without enough nodes, keep the state of the last round and give up."""
        if self.roster is None:
            return
        try:
            self.roster, self._present = self.recruiter.attend(grid, self.roster, round)
        except NodesMissingError as error:
            if round == 1 or self.on_checkpoint is None:
                raise
            self._checkpoint(round - 1)
            raise NodesMissingError(f"{error}; resume = auto goes on from here") from None

    def _close_round(self, round: int, seconds: float, *, last: int) -> None:
        if self._record is not None:
            self._record.seconds = seconds
            if self.on_round is not None:
                self.on_round(self._record)
        every = self.problem.config.checkpoint_every
        if every and (round % every == 0 or round == last):
            self._checkpoint(round)
            self._session = replace(self._session, committed=round)

    def _checkpoint(self, round: int) -> None:
        if self.on_checkpoint is not None and self.roster is not None:
            self.on_checkpoint(self.state(round))

    def state(self, round: int) -> ServerState:
        """Return what the round after ``round`` depends on."""
        return ServerState(
            round=round,
            rho=self._rho,
            standing=self._standing,
            optimizer=self.optimizer.state(),
            roster=self.roster or Roster({}, frozenset()),
        )


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
