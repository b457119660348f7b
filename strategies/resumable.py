"""Flower's loop of rounds, on nodes that come and go and with a state that can be kept."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from logging import INFO
from uuid import uuid4

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from pfl_flower.run.config import RunConfig
from pfl_flower.support.errors import NodesMissingError
from pfl_flower.support.threads import one_thread
from pfl_flower.transport.broadcasts import Session
from pfl_flower.transport.flower_internals import log
from strategies.asking import ask
from strategies.questions import Question
from strategies.recruiting import Recruiter
from strategies.roster import Roster
from strategies.round_record import RoundRecord
from strategies.server_state import ServerState


class ResumableStrategy(Strategy):
    """A strategy whose users are laid out over the nodes, and which goes on from where it was.

    Parameters
    ----------
    config : RunConfig
        Its keys on nodes, time limits and checkpoints.
    on_round : callable, optional
        Called with every ``RoundRecord``, after the round.
    on_checkpoint : callable, optional
        Called with the ``ServerState`` to keep, each ``checkpoint-every`` rounds, after the last
        round, and when too few nodes are left.
    saved : ServerState, optional
        Where to go on from.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        on_round: Callable[[RoundRecord], None] | None = None,
        on_checkpoint: Callable[[ServerState], None] | None = None,
        saved: ServerState | None = None,
    ) -> None:
        self.config, self.on_round = config, on_round
        self.on_checkpoint, self.saved = on_checkpoint, saved
        self.recruiter = Recruiter(config)
        self.roster = Roster()
        self.present: frozenset[int] = frozenset()
        self.session = Session()
        self.record: RoundRecord | None = None
        self.asked: list[Question] = []
        self._notices: Counter[str] = Counter()

    @abstractmethod
    def state(self, round: int) -> ServerState:
        """Return what the round after ``round`` depends on."""

    @abstractmethod
    def restore(self, saved: ServerState) -> ArrayRecord:
        """Take up a state, and return the arrays of its next round."""

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
        done = self.session.resumed
        result = Result(arrays=arrays)
        if done == 0 and evaluate_fn and (metrics := evaluate_fn(0, arrays)) is not None:
            result.evaluate_metrics_serverapp[0] = metrics
        for current in range(done + 1, num_rounds + 1):
            began = time.perf_counter()
            # Sums have the bits of one thread; and OpenMP's threads, once woken, wait busily for
            # more, on cores that the threads of ``each`` need.
            with one_thread():
                self._round(current, result, grid, timeout, train_config, evaluate_config)
                if evaluate_fn and (metrics := evaluate_fn(current, result.arrays)) is not None:
                    result.evaluate_metrics_serverapp[current] = metrics
                self._close_round(current, time.perf_counter() - began, last=num_rounds)
        return result

    def _round(
        self,
        current: int,
        result: Result,
        grid: Grid,
        timeout: float,
        train_config: ConfigRecord,
        evaluate_config: ConfigRecord,
    ) -> None:
        """Play a round, and put what came of it into the result."""
        self._attend(grid, current)
        messages = list(self.configure_train(current, result.arrays, train_config, grid))
        replies = list(self.ask(grid, messages, timeout))
        if later := list(self.configure_informed(current, replies)):
            replies += self.ask(grid, later, timeout)
        new_arrays, train_metrics = self.aggregate_train(current, replies)
        if new_arrays is not None:
            result.arrays = new_arrays
        if train_metrics is not None:
            result.train_metrics_clientapp[current] = train_metrics
        questions = list(self.configure_evaluate(current, result.arrays, evaluate_config, grid))
        answers = self.ask(grid, questions, timeout) if questions else []
        if (local := self.aggregate_evaluate(current, answers)) is not None:
            result.evaluate_metrics_clientapp[current] = local

    def configure_informed(self, round: int, replies: Sequence[Message]) -> Iterable[Message]:
        """Return what is to be asked of those who are told of the replies to a round's messages."""
        return ()

    def begin(self, grid: Grid, arrays: ArrayRecord) -> ArrayRecord:
        """Recruit the nodes, and return the arrays of the first round, or of the one to resume.

        Raises
        ------
        NodesMissingError
            If fewer than ``min-nodes`` came or none can take part.
        """
        saved = self.saved
        done = 0 if saved is None else saved.round
        if saved is not None or self.config.checkpoint_every:
            self.session = Session(uuid4().hex, done, done)
        if saved is None:
            self.roster = self.recruiter.begin(grid)
            return arrays
        self.roster = self.recruiter.resume(grid, saved.roster, done)
        log(INFO, "resumed after round %d", done)
        return self.restore(saved)

    def ask(self, grid: Grid, messages: Iterable[Message], timeout: float) -> list[Message]:
        """Send messages and return the replies: once for each, however often it was repeated.

        What was repeated, and why, is for ``repeated`` to say.
        """
        known = {id(question.message): question for question in self.asked}
        questions = [known.get(id(message)) or Question(message) for message in messages]
        heard = ask(grid, questions, timeout, self.recruiter.introductions.patience)
        self._notices.update(heard.notices)
        return heard.replies

    def repeated(self) -> Counter[str]:
        """Return notices of why questions were repeated, once."""
        notices, self._notices = self._notices, Counter()
        return notices

    def _attend(self, grid: Grid, round: int) -> None:
        """See who is there; without enough nodes, keep the state of the last round and give up."""
        try:
            self.roster, self.present = self.recruiter.attend(grid, self.roster, round)
        except NodesMissingError as error:
            if round == 1 or self.on_checkpoint is None:
                raise
            self.on_checkpoint(self.state(round - 1))
            raise NodesMissingError(f"{error}; resume = auto goes on from here") from None

    def _close_round(self, round: int, seconds: float, *, last: int) -> None:
        if self.record is not None:
            self.record.seconds = seconds
            for kind, number in self.repeated().items():
                self.record.leave_out(kind, number)
            if self.on_round is not None:
                self.on_round(self.record)
        every = self.config.checkpoint_every
        if every and (round % every == 0 or round == last):
            if self.on_checkpoint is not None:
                self.on_checkpoint(self.state(round))
            self.session = replace(self.session, committed=round)
