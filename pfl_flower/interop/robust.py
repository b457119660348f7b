"""Federated averaging with a robust rule in place of the weighted mean."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, QFedAvg
from torch import Tensor

from pfl_flower.aggregation.rules import bind
from pfl_flower.aggregation.table import AGGREGATIONS, most_tolerated, rows_needed
from pfl_flower.interop.checked import Checked
from pfl_flower.interop.layers import FLOATING, Layers, Layout, Values, arrays_of, packed, unpacked
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.foreign_text import one_line

_LOG = logging.getLogger("flwr")


class RobustFedAvg(Checked):
    """FedAvg whose mean is a robust rule over the clients' updates.

    With the k right replies ``theta_n`` to the model ``rho``, in float64 and in the order of the
    nodes' ids, and a rule of ``pfl_flower.aggregation``, which makes k times a robust mean of k
    rows,

        mean = rho - rule(rho - theta_1, ..., rho - theta_k) / k

    takes the place of FedAvg's ``sum_n w_n theta_n``: what clients say of their number of examples
    does not count here (in the mean of their metrics it does). Layers that are not floating, such
    as counters, take the median of their values. What the mean is used for is the other strategy's
    matter: with ``on=FedAdam(...)`` it is the target of Adam's step. Replies are checked as by
    ``Checked``.

    Parameters
    ----------
    rule : str or callable
        A name in the table of ``pfl_flower.aggregation.table`` (not of those that see rounds: there
        is no run here that keeps what they remember), a rule as ``package.module:name``,
        or a function from rows ``(k, d)`` to k times their mean ``(d,)``.
    tolerance : int, optional
        f, how many of the replies may be anything, for a rule that names it.
    options : mapping, optional
        Of the rule.
    mixing : bool
        Whether rows are first averaged with their nearest (Allouah et al. 2023).
    on : FedAvg, optional
        A strategy that uses the mean: FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad, FedProx.
    max_norm, max_norm_ratio, max_examples, min_replies
        As of ``Checked``; ``min_replies`` is at least what the rule needs for f.
    **fedavg
        Arguments of FedAvg, if ``on`` is not given.

    Raises
    ------
    ConfigError
        One line about the argument that is wrong.

    Notes
    -----
    A round holds ``k d`` float64 numbers: 800 MB for 100 clients and a million parameters.
    """

    def __init__(
        self,
        rule: str | Callable[..., Tensor] = "multi-krum",
        tolerance: int | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        mixing: bool = False,
        on: FedAvg | None = None,
        max_norm: float | None = None,
        max_norm_ratio: float | None = None,
        max_examples: float | None = None,
        min_replies: int = 1,
        **fedavg: Any,
    ) -> None:
        super().__init__(
            _strategy(on, fedavg),
            max_norm=max_norm,
            max_norm_ratio=max_norm_ratio,
            max_examples=max_examples,
            min_replies=min_replies,
        )
        self.name = rule if isinstance(rule, str) else getattr(rule, "__name__", "rule")
        given = dict(options or {})
        self.options, self.mixing = _text(given), mixing
        self.tolerance = _tolerance(rule, tolerance, mixing, self.options)
        self.rule = _bound(rule, self.tolerance, mixing, given)

    def summary(self) -> None:
        """Log the rule, and the other strategy's summary."""
        _LOG.info("\t├──> Rule: %s, tolerance %d", self.name, self.tolerance)
        super().summary()

    def needed(self) -> int:
        """Return how many right replies the rule needs for f, at least ``min_replies``."""
        needed = self.min_replies
        if self.name in AGGREGATIONS:
            right = rows_needed(self.name, self.tolerance, mixing=self.mixing, options=self.options)
            needed = max(needed, right or 0)
        return max(needed, 1)

    def combined(
        self, server_round: int, replies: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return what the other strategy makes of the robust mean alone.

        It is handed as one reply: its weighted mean of one is that one, to the bit.
        """
        if not replies:
            return None, None
        ordered = sorted(replies, key=lambda one: one.metadata.src_node_id)
        first = ordered[0]
        name = next(iter(arrays_of(first.content)))
        sent = unpacked(self._sent[first.metadata.src_node_id])
        mean = robust_mean(
            sent, [unpacked(arrays_of(one.content)[name]) for one in ordered], self.rule
        )
        weighted_by = self.limits.weighted_by
        metrics = self.strategy.train_metrics_aggr_fn(  # type: ignore[attr-defined]
            [one.content for one in replies], weighted_by
        )
        metrics[weighted_by] = 1.0
        metric_name = next(
            key for key, one in first.content.items() if isinstance(one, MetricRecord)
        )
        whole = Message(RecordDict({name: packed(mean), metric_name: metrics}), reply_to=first)
        made: tuple[ArrayRecord | None, MetricRecord | None]
        made = self._inner("aggregate_train")(server_round, [whole])
        return _counters_kept(made[0], mean), made[1]


def _counters_kept(arrays: ArrayRecord | None, mean: Layers) -> ArrayRecord | None:
    """Return a strategy's model with the layers that are not floating as they were handed to it.

    Flower's strategies multiply them by a weight, and a step of Adam's makes no counter.
    """
    if arrays is None:
        return None
    kept = {name: values for name, values in mean.items() if values.dtype.kind != FLOATING}
    return ArrayRecord({**arrays, **packed(kept)})


def robust_mean(
    sent: Layers, models: list[dict[str, Values]], rule: Callable[[Tensor], Tensor]
) -> dict[str, Values]:
    """Return the robust mean of models, layer by layer in their own types.

    Parameters
    ----------
    sent : mapping
        rho, by layer.
    models : list of mapping
        theta_n of k clients.
    rule : callable
        From rows ``(k, d)`` to k times their mean.

    Examples
    --------
    >>> zero = {"w": np.zeros(1)}
    >>> models = [{"w": np.array([x])} for x in (1.0, 2.0, 900.0)]
    >>> robust_mean(zero, models, lambda rows: 3 * rows.median(dim=0).values)
    {'w': array([2.])}
    """
    layout = Layout.of(models[0])
    rho = layout.vector(sent)
    rows = torch.stack([rho - layout.vector(model) for model in models])
    direction = rule(rows)
    middles = {
        name: np.median(np.stack([model[name] for model in models]), axis=0).astype(dtype)
        for name, dtype in layout.dtypes.items()
        if dtype.kind != FLOATING
    }
    made, _ = layout.layers(rho - direction / len(models), middles)
    return made


def _strategy(on: FedAvg | None, fedavg: Mapping[str, Any]) -> FedAvg:
    if on is None:
        try:
            return FedAvg(**fedavg)
        except TypeError as error:
            raise ConfigError(
                f"RobustFedAvg: {one_line(error)}: expected FedAvg's arguments"
            ) from None
    if fedavg:
        raise ConfigError(f"{next(iter(fedavg))}: expected it in on = {type(on).__name__}(...)")
    if not isinstance(on, FedAvg) or isinstance(on, QFedAvg):
        raise ConfigError(
            f"on = {type(on).__name__}: expected a strategy that averages models: FedAvg, FedAvgM, "
            "FedAdam, FedYogi, FedAdagrad, FedProx"
        )
    return on


def _text(options: dict[str, Any]) -> str:
    try:
        return json.dumps(options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"options = {one_line(options)}: expected JSON's values") from error


def _tolerance(
    rule: str | Callable[..., Tensor], tolerance: int | None, mixing: bool, options: str
) -> int:
    whole = isinstance(tolerance, int) and not isinstance(tolerance, bool)
    if tolerance is not None and (not whole or tolerance < 0):
        raise ConfigError(f"tolerance = {one_line(tolerance)}: expected a whole number from 0")
    if isinstance(rule, str) and rule in AGGREGATIONS:
        if AGGREGATIONS[rule].rounds:
            plain = ", ".join(name for name, row in AGGREGATIONS.items() if not row.rounds)
            raise ConfigError(f"rule = {rule}: expected a rule of rows alone: {plain}")
        AGGREGATIONS.options(rule, options)
        names_f = most_tolerated(rule, 1, mixing=mixing, options=options) is not None
        if tolerance is not None and not names_f:
            raise ConfigError(f"tolerance = {tolerance}: expected none, {rule} names no f")
        f = (1 if names_f else 0) if tolerance is None else tolerance
        if rows_needed(rule, f, mixing=mixing, options=options) is None:
            raise ConfigError(f"tolerance = {f}: expected at most {AGGREGATIONS[rule].cap}")
        return f
    return tolerance or 0


def _bound(
    rule: str | Callable[..., Tensor], tolerance: int, mixing: bool, options: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    if callable(rule):
        return bind(rule, tolerance=tolerance, mixing=mixing, **options)
    given = AGGREGATIONS.options(rule, _text(options))
    return bind(AGGREGATIONS.load(rule), tolerance=tolerance, mixing=mixing, **given)
