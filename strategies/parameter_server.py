"""The parameter server of Section 2.2 as a Flower strategy: broadcast, check, sum, step."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from logging import INFO, WARNING

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from pfl_flower.aggregation.combination import RunningRule, combine
from pfl_flower.aggregation.reports import Reason, RowCheck
from pfl_flower.aggregation.server_steps import ServerOptimizer
from pfl_flower.aggregation.table import lowered
from pfl_flower.attacks.table import knowledge_of
from pfl_flower.run.problem import Problem
from pfl_flower.run.served import Measure
from pfl_flower.run.server_setup import ServerSetup
from pfl_flower.run.step_sizes import server_step_sizes
from pfl_flower.support.seeding import generator
from pfl_flower.support.threads import one_thread
from pfl_flower.support.users import among, ascending, ids
from pfl_flower.transport.broadcasts import Broadcast, pack_rho, unpack_rho
from pfl_flower.transport.flower_internals import log
from strategies.measuring import Measuring
from strategies.questions import (
    evaluation_questions,
    read_evaluations,
    training_questions,
)
from strategies.replies import Form, RoundReplies, read_replies
from strategies.resumable import ResumableStrategy
from strategies.round_record import RoundRecord
from strategies.server_state import PastRounds, ServerState


class ParameterServer(ResumableStrategy):
    """Personalised federated gradient descent with a check of every report.

    Parameters
    ----------
    problem : Problem
        Regulariser, dimensions and run configuration.
    on_round, on_checkpoint, saved
        As of ``ResumableStrategy``.

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
        super().__init__(config, on_round=on_round, on_checkpoint=on_checkpoint, saved=saved)
        self.problem = problem
        self.step_sizes = server_step_sizes(problem)
        self.scale = config.sample_scale()
        self.optimizer = ServerOptimizer(config.server_optimizer)
        self.rule = RunningRule(config, ServerSetup(problem), problem.initial)
        self.check = RowCheck(
            plausible=problem.plausible,
            rtol=config.gradient_rtol,
            max_norm=config.max_gradient_norm if config.way.coupled else 0.0,
            outside=Reason.OUTSIDE_GRAD if config.way.coupled else Reason.NORM_LIMIT,
        )
        self._omniscient = knowledge_of(config) == "omniscient"
        self._everyone = frozenset(range(config.users))
        by_user = problem.source.tested or problem.backdoor is not None
        self._measuring = Measuring(config, by_user)
        self._past = PastRounds.none(config.users)
        self._rho = problem.initial

    def state(self, round: int) -> ServerState:
        """Return what the round after ``round`` depends on."""
        return ServerState(
            round=round,
            rho=self._rho,
            past=self._past,
            optimizer=self.optimizer.state(),
            memory=self.rule.memory(),
            roster=self.roster,
        )

    def restore(self, saved: ServerState) -> ArrayRecord:
        """Take up a state; users whose memory no node holds start anew, and are named."""
        self._rho, self._past = saved.rho, saved.past
        self.optimizer.restore(saved.rho, saved.optimizer)
        self.rule.restore(saved.memory)
        held = {user for said in self.recruiter.nodes.values() for user in said.holds}
        met = self._past.last_accepted.nonzero().flatten().tolist()
        if lost := sorted(set(met) - held):
            log(WARNING, "no node holds the memory of users %s: they start anew", lost)
        return pack_rho(saved.rho)

    def participants(self, round: int) -> frozenset[int]:
        """Return the users asked in a round: a pure function of the seed and the round."""
        config = self.config
        if config.participation == 1:
            return self._everyone
        draw = generator(config.seed, "participation", round)
        order = torch.randperm(config.users, generator=draw)
        return frozenset(order[: config.sample_size()].tolist())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one broadcast per node that has a user to ask."""
        if not self.roster.nodes:
            self.roster = self.recruiter.begin(grid)
            self.present = frozenset(self.roster.nodes)
        self._rho = unpack_rho(arrays).to(self.problem.device)
        users = self.participants(server_round)
        asked = self.roster.asked(users - self.roster.strategic if self._omniscient else users)
        measured = self._measuring.with_reports(server_round, self.roster, self.present)
        told = {
            node: self._broadcast(server_round, node, users, measured=node in measured)
            for node, users in asked.items()
        }
        self.asked = training_questions(told, measured)
        # Flower would wait in vain for a node that it knows to be gone.
        return [one.message for one in self.asked if one.node in self.present]

    def configure_informed(self, round: int, replies: Sequence[Message]) -> list[Message]:
        """Return broadcasts to omniscient users' nodes, with the honest reports that came."""
        users = self.participants(round) & self.roster.strategic
        if not self._omniscient or not users:
            return []
        rows = self.read(round, replies).rows.values_by_user
        # Rows of nobody have no columns.
        honest = rows if len(rows) else self._rho.new_zeros((0, len(self._rho)))
        later = training_questions(
            {
                node: replace(
                    self._broadcast(round, node, some), honest=honest, coalition=len(users)
                )
                for node, some in self.roster.asked(users).items()
            }
        )
        self.asked += later
        return [one.message for one in later if one.node in self.present]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every reply, combine the rows that count, and step rho."""
        with one_thread():
            return self._aggregate(server_round, replies)

    def _aggregate(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        eta = self.step_sizes.at(server_round)
        found = self.read(server_round, replies)
        self._measuring.heard = found.measured
        rows = found.rows.to(self.problem.device)
        rule = self.rule.at(server_round, self._rho)
        direction, accepted, overflow = combine(
            rows,
            self._rho,
            eta * self.scale,
            rule,
            takes=lambda found: self.optimizer.takes(self._rho, self._scaled(found), eta),
        )
        self.rule.remember(rule, accepted)
        rejections = sorted([*found.rejections, *overflow], key=lambda fault: fault.user)
        found.notices.update(self.recruiter.turned_away())
        found.notices.update(self.repeated())
        found.notices.update(lowered(self.config, len(accepted)) if accepted else ())
        metrics = found.metrics
        rho = self.optimizer.step(self._rho, self._scaled(direction), eta)
        self.record = RoundRecord(
            round=server_round,
            eta=eta,
            rho=rho,
            accepted=accepted,
            rejections=rejections,
            strategic=self.roster.strategic,
            metrics=metrics,
            accuracies=metrics.accuracies,
            notices=found.notices,
            lost=self._past.lost(metrics.memory),
            unkept=found.unkept,
        )
        self._past.add(self.record, self.scale)
        self.record.honest_unheard = self._past.unheard(self.roster.strategic)
        self._rho = rho
        self.record.log_faults()
        return pack_rho(rho), self.record.as_metrics()

    def _scaled(self, direction: Tensor) -> Tensor:
        return direction if self.scale == 1 else self.scale * direction

    def read(self, server_round: int, replies: Iterable[Message]) -> RoundReplies:
        """Return the rows of the replies that may count, and why the others do not."""
        form = Form(server_round, self.problem.model.dim, self.problem.dtype)
        return read_replies(self.asked, replies, form=form, check=self.check)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return questions to honest nodes that have not said how good their models are."""
        left = self._measuring.by_message(server_round, self.roster, self.present)
        rho = arrays if self._measuring.by_user else None
        self.asked = evaluation_questions(server_round, left, rho)
        return [one.message for one in self.asked]

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the mean accuracy of the local models that answered."""
        most = Measure.of(self.problem.source.loss).most
        said = read_evaluations(self.asked, replies, most)
        accuracies = said.accuracies
        if self.record is not None:
            accuracies = {**self.record.accuracies, **accuracies}
            self.record.accuracies, self.record.served = accuracies, said.served
            self.record.triggered = said.triggered
            self.record.leave_out("absurd", said.absurd)
        if not accuracies:
            return None
        return MetricRecord({"local-accuracy": statistics.fmean(accuracies.values())})

    def summary(self) -> None:
        """Log what is about to run."""
        config = self.config
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
        if not config.way.coupled:
            log(INFO, "personalization = %s: %s", config.personalization, config.way.text)

    def _broadcast(
        self, round: int, node: int, users: tuple[int, ...], *, measured: bool = False
    ) -> Broadcast:
        past, oracle = self._past, self.config.estimator == "oracle"
        given = oracle and bool(among(ids(users), ascending(self.roster.strategic)).any())
        return Broadcast(
            round=round,
            users=users,
            last_accepted=past.last_accepted[ids(users)],
            rho=self._rho,
            eta=self.step_sizes.at(round) * self.scale,
            eta_sum=past.eta_sum,
            honest_sum=past.honest_sum if given else None,
            measured=measured,
            members=self.roster.nodes[node],
            session=self.session,
        )
