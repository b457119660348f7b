"""A strategy around any other that takes wrong replies out before the other one sees them."""

from __future__ import annotations

import logging
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from pfl_flower.interop.checks import (
    Fault,
    Limits,
    Sound,
    commonest,
    example_fault,
    finite_metrics,
    form_of,
    metrics_of,
    names_of,
    only_asked,
    sound_or_fault,
)
from pfl_flower.interop.layers import Values, arrays_of, unpacked
from pfl_flower.interop.nonces import Nonces
from pfl_flower.support.errors import ConfigError, RunFailedError
from pfl_flower.support.foreign_text import one_line

TAKEN_OUT = "taken-out"
METHODS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")
_LOG = logging.getLogger("flwr")


class TooFewRepliesError(RunFailedError):
    """Fewer right replies than the round needs.

    Attributes
    ----------
    arrays : ArrayRecord or None
        The last model that was sent; the strategy's state is that of the round before.
    server_round : int
        The round.
    faults : list of Fault
        Why the others were taken out.
    """

    def __init__(
        self, server_round: int, kept: int, least: int, faults: list[Fault], arrays: ArrayRecord
    ) -> None:
        counts = Counter(fault.reason for fault in faults)
        why = ", ".join(f"{number} {reason}" for reason, number in counts.items()) or "none came"
        super().__init__(
            f"round {server_round}: {kept} right replies, {least} are needed (taken out: {why})"
        )
        self.arrays, self.server_round, self.faults = arrays, server_round, faults


class Checked(Strategy):
    """Any strategy, shown only the replies that can be counted.

    A reply is taken out, and named in the log with the reason, if it carries an error or was not
    asked for; with ``nonce``, if it does not bring its question's secret back; if it has not one
    record of arrays and one of metrics, named as most replies name them; has other layers, shapes
    or kinds of numbers than the model that its node was sent, or another width of them than most
    replies; a number that is not finite; an update longer than allowed; examples that are no number
    above 0, or more than allowed; other metrics than most replies. The round goes on with the rest.

    Parameters
    ----------
    strategy : Strategy
        The other one. It samples, averages and keeps its state as without this one.
    max_norm : float, optional
        Longest update ``||theta_n - rho||``, over all floating layers.
    max_norm_ratio : float, optional
        Longest update as a multiple of the median of the round's well-formed ones, at least 1.
    max_examples : float, optional
        Most examples that a client may claim: it is its own word, and FedAvg weighs by it.
    min_replies : int
        Least number of right replies to a training round.
    same_layers : bool
        Whether layers must be those that were sent; not so where clients send trees.
    nonce : bool
        Whether replies must bring back a secret that goes with each question: the clients' app
        needs ``pfl.nonce_mod()`` first among its mods.

    Attributes
    ----------
    faults : list of tuple of int and Fault
        All that was taken out, with the round.

    Notes
    -----
    The metrics that the strategy aggregates in a round get ``taken-out``, a number, and one of each
    reason that occurred, ``taken-out-norm`` and so on. Where too few replies are right, the other
    strategy is not called, and ``TooFewRepliesError`` carries the last model.

    Raises
    ------
    ConfigError
        One line about the argument that is wrong.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        max_norm: float | None = None,
        max_norm_ratio: float | None = None,
        max_examples: float | None = None,
        min_replies: int = 1,
        same_layers: bool = True,
        nonce: bool = False,
    ) -> None:
        if not isinstance(strategy, Strategy):
            raise ConfigError(
                f"strategy = {one_line(strategy)}: expected a flwr.serverapp.strategy.Strategy"
            )
        _positive("max_norm", max_norm)
        _positive("max_norm_ratio", max_norm_ratio, least=1.0)
        _positive("max_examples", max_examples)
        if isinstance(min_replies, bool) or not isinstance(min_replies, int) or min_replies < 1:
            raise ConfigError(f"min_replies = {min_replies}: expected a whole number from 1")
        if not isinstance(nonce, bool):
            raise ConfigError(f"nonce = {one_line(nonce)}: expected True or False")
        self.strategy = strategy
        self.nonces = Nonces() if nonce else None
        self.limits = Limits(
            norm=max_norm,
            ratio=max_norm_ratio,
            examples=max_examples,
            weighted_by=getattr(strategy, "weighted_by_key", "num-examples"),
            same_layers=same_layers,
        )
        self.min_replies = min_replies
        self.faults: list[tuple[int, Fault]] = []
        self._sent: dict[int, ArrayRecord] = {}
        self._asked: dict[int, None] = {}
        self._arrays = ArrayRecord()

    @property
    def weighted_by_key(self) -> str:
        """The metric that weighs, by the name that strategies have for it."""
        return self.limits.weighted_by

    def summary(self) -> None:
        """Log the limits, and the other strategy's summary."""
        given = [
            f"{name} = {value:g}"
            for name, value in (
                ("norm", self.limits.norm),
                ("norm / median", self.limits.ratio),
                ("examples", self.limits.examples),
            )
            if value is not None
        ]
        _LOG.info("\t├──> Checked replies: %s", ", ".join(given) or "no limits given")
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the other strategy's messages, and remember what each node was sent."""
        messages = list(self._inner("configure_train")(server_round, arrays, config, grid))
        self._arrays, self._sent = arrays, {}
        for message in messages:
            records = list(arrays_of(message.content).values())
            self._sent[message.metadata.dst_node_id] = records[0] if records else arrays
        return self._signed(messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return what the other strategy makes of the right replies.

        Raises
        ------
        TooFewRepliesError
            If they are too few.
        """
        kept, faults = self._asked_for(replies, self._sent)
        kept = self._well_formed(kept, faults)
        self._tell(server_round, faults)
        least = self.needed()
        if self._sent and len(kept) < least:
            raise TooFewRepliesError(server_round, len(kept), least, faults, self._arrays)
        arrays, metrics = self.combined(server_round, kept)
        return arrays, _noted(metrics, faults)

    def needed(self) -> int:
        """Return how many right replies the round needs."""
        return self.min_replies

    def combined(
        self, server_round: int, replies: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return what the other strategy makes of replies that are right."""
        made: tuple[ArrayRecord | None, MetricRecord | None]
        made = self._inner("aggregate_train")(server_round, replies)
        return made

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the other strategy's messages."""
        messages = list(self._inner("configure_evaluate")(server_round, arrays, config, grid))
        self._asked = {message.metadata.dst_node_id: None for message in messages}
        return self._signed(messages)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return what the other strategy makes of the right replies."""
        kept, faults = self._asked_for(replies, self._asked)
        kept = self._same_metrics(kept, faults)
        self._tell(server_round, faults)
        return _noted(self._inner("aggregate_evaluate")(server_round, kept), faults)

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **options: Any) -> Result:
        """Run all rounds: Flower's own loop, or the other strategy's if it has one of its own."""
        if type(self.strategy).start is Strategy.start:
            return super().start(grid, initial_arrays, *args, **options)
        # Its loop calls its own methods: while it runs, these stand in their places.
        own = vars(self.strategy)
        kept = {name: own[name] for name in METHODS if name in own}
        own.update({name: getattr(self, name) for name in METHODS})
        try:
            return self.strategy.start(grid, initial_arrays, *args, **options)
        finally:
            for name in METHODS:
                own.pop(name, None)
            own.update(kept)

    def _inner(self, name: str) -> Any:
        """Return the other strategy's method, also while ours stands in its place."""
        return getattr(type(self.strategy), name).__get__(self.strategy)

    def _signed(self, messages: list[Message]) -> list[Message]:
        """Return the messages, with secrets if they are to come back."""
        if self.nonces is not None:
            self.nonces.sign(messages)
        return messages

    def _asked_for(
        self, replies: Iterable[Message], asked: Mapping[int, object]
    ) -> tuple[list[Message], list[Fault]]:
        """Return the replies with content of nodes that were asked, and that they sent."""
        forged: list[Fault] = []
        if self.nonces is not None:
            replies, forged = self.nonces.split(replies)
        kept, faults = only_asked(replies, asked)
        return kept, [*forged, *faults]

    def _well_formed(self, replies: list[Message], faults: list[Fault]) -> list[Message]:
        """Return the replies whose arrays and metrics are right."""
        sent: dict[int, Mapping[str, Values]] = {}
        sound: dict[int, Sound] = {}
        kept = []
        for reply in replies:
            node = reply.metadata.src_node_id
            record = self._sent[node]
            if id(record) not in sent:  # strategies send one record to all
                sent[id(record)] = unpacked(record)
            found = sound_or_fault(reply.content, sent[id(record)], self.limits)
            if isinstance(found, Sound):
                sound[node] = found
                kept.append(reply)
            else:
                faults.append(Fault(node, *found))
        kept = self._same_types(kept, sound, faults)
        kept = self._same_metrics(kept, faults)
        return self._short(kept, sound, faults)

    def _same_types(
        self, replies: list[Message], sound: Mapping[int, Sound], faults: list[Fault]
    ) -> list[Message]:
        """Return the replies whose layers have the types that most have."""
        if not replies or not self.limits.same_layers:
            return replies
        usual = commonest([sound[node].types for node in sorted(sound)])
        kept = []
        for reply in replies:
            node = reply.metadata.src_node_id
            found = sound[node].types
            if found == usual:
                kept.append(reply)
                continue
            name, kind = next(one for one, other in zip(found, usual, strict=True) if one != other)
            faults.append(Fault(node, "layers", f"{one_line(name)}: {kind}, unlike most"))
        return kept

    def _same_metrics(self, replies: list[Message], faults: list[Fault]) -> list[Message]:
        """Return the replies with a usable number of examples, and metrics as most have them."""
        having = []
        for reply in replies:
            node, metrics = reply.metadata.src_node_id, metrics_of(reply.content)
            if metrics is None:
                faults.append(Fault(node, "form", "expected one record of metrics"))
            elif fault := example_fault(metrics, self.limits):
                faults.append(Fault(node, "examples", fault))
            elif not finite_metrics(metrics):
                faults.append(Fault(node, "metrics", "a metric that is not finite"))
            else:
                having.append((reply, (names_of(reply.content), form_of(metrics))))
        if not having:
            return []
        # In the order of the nodes, so that of two forms as common the choice is nobody's haste.
        ordered = sorted(having, key=lambda one: one[0].metadata.src_node_id)
        usual = commonest([form for _, form in ordered])
        for reply, form in having:
            if form != usual:
                node = reply.metadata.src_node_id
                named = one_line(", ".join(name for name, _ in form[1]))
                faults.append(Fault(node, "metrics", f"records or metrics unlike most: {named}"))
        return [reply for reply, form in having if form == usual]

    def _short(
        self, replies: list[Message], sound: Mapping[int, Sound], faults: list[Fault]
    ) -> list[Message]:
        """Return the replies whose updates are not too long."""
        limit, middle = self.limits.norm, 0.0
        if replies:
            middle = statistics.median(sound[one.metadata.src_node_id].norm for one in replies)
        # Where half of the replies did not move, no multiple of that says anything.
        if self.limits.ratio is not None and middle > 0:
            relative = self.limits.ratio * middle
            limit = relative if limit is None else min(limit, relative)
        kept = []
        for reply in replies:
            node = reply.metadata.src_node_id
            norm = sound[node].norm
            if limit is not None and norm > limit:
                faults.append(Fault(node, "norm", f"{norm:.6g}, more than {limit:.6g}"))
            else:
                kept.append(reply)
        return kept

    def _tell(self, server_round: int, faults: list[Fault]) -> None:
        for fault in faults:
            self.faults.append((server_round, fault))
            _LOG.warning(
                "round %d: the reply of node %d is taken out: %s (%s)",
                server_round,
                fault.node,
                fault.reason,
                one_line(fault.detail),
            )


def _noted(metrics: MetricRecord | None, faults: list[Fault]) -> MetricRecord | None:
    """Return the metrics with how many replies were taken out, by reason."""
    counts = Counter(fault.reason for fault in faults)
    if metrics is None and not counts:
        return None
    noted = MetricRecord() if metrics is None else metrics
    noted[TAKEN_OUT] = len(faults)
    for reason, number in sorted(counts.items()):
        noted[f"{TAKEN_OUT}-{reason}"] = number
    return noted


def _positive(name: str, value: Any, least: float = 0.0) -> None:
    if value is None:
        return
    right = "a number above 0" if not least else f"a number from {least:g}"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0 or value < least:
        raise ConfigError(f"{name} = {one_line(value)}: expected {right}")
