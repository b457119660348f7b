"""Federated averaging with a robust rule in place of the weighted mean."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, QFedAvg, Result
from torch import Tensor

from pfl_flower.interop.checked import Checked
from pfl_flower.interop.layers import FLOATING, Layers, Layout, Values, arrays_of, packed, unpacked
from pfl_flower.interop.rules import AppRule
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
        A name in the table of ``pfl_flower.aggregation.table`` (but for ``fltrust``, whose server
        holds points of its own), a rule as ``package.module:name``, a function from rows ``(k, d)``
        to k times their mean ``(d,)``, or a class with ``init`` and ``update`` as of
        ``pfl_flower.aggregation.rounds.RoundRule``.
    tolerance : int, optional
        f, how many of the replies may be anything, for a rule that names it.
    options : mapping, optional
        Of the rule; ``selected`` of multi-krum and ``radius`` of those that clip are among them.
    mixing : bool
        Whether rows are first averaged with their nearest (Allouah et al. 2023).
    seed : int
        Of the draws of a rule that makes some (``bucketing``, ``dnc``). They do not hang on nodes'
        ids, which differ from run to run: see Notes.
    on : FedAvg, optional
        A strategy that uses the mean: FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad, FedProx.
    max_norm, max_norm_ratio, max_examples, min_replies, nonce
        As of ``Checked``; ``min_replies`` is at least what the rule needs for f.
    **fedavg
        Arguments of FedAvg, if ``on`` is not given.

    Raises
    ------
    ConfigError
        One line about the argument that is wrong.

    Notes
    -----
    A round holds ``k d`` float64 numbers: 800 MB for 100 clients and a million parameters. So does
    ``history-clipping`` between rounds, of all clients that ever replied.

    ``bucketing`` deals clients by numbers that they get when they first reply, in the order of what
    they say, entry by entry: apps whose clients train alike are dealt alike in two runs, on Ray as
    elsewhere. Where Flower draws which clients train (``fraction_train`` below 1) it does so anew
    in every run, and so are the deals.
    """

    def __init__(
        self,
        rule: str | Callable[..., Tensor] = "multi-krum",
        tolerance: int | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        mixing: bool = False,
        seed: int = 0,
        on: FedAvg | None = None,
        max_norm: float | None = None,
        max_norm_ratio: float | None = None,
        max_examples: float | None = None,
        min_replies: int = 1,
        nonce: bool = False,
        **fedavg: Any,
    ) -> None:
        super().__init__(
            _strategy(on, fedavg),
            max_norm=max_norm,
            max_norm_ratio=max_norm_ratio,
            max_examples=max_examples,
            min_replies=min_replies,
            nonce=nonce,
        )
        self.rule = AppRule(rule, tolerance=tolerance, options=options, mixing=mixing, seed=seed)

    def summary(self) -> None:
        """Log the rule, and the other strategy's summary."""
        _LOG.info("\t├──> Rule: %s, tolerance %d", self.rule.name, self.rule.tolerance)
        super().summary()

    def needed(self) -> int:
        """Return how many right replies the rule needs for f, at least ``min_replies``."""
        return max(self.min_replies, self.rule.needed())

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **options: Any) -> Result:
        """Run all rounds, after a rule of one's own has been tried on a model of this size."""
        layers = unpacked(initial_arrays)
        self.rule.try_on(Layout.of(layers).vector(layers))
        return super().start(grid, initial_arrays, *args, **options)

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
        models = [unpacked(arrays_of(one.content)[name]) for one in ordered]
        nodes = [one.metadata.src_node_id for one in ordered]
        mean = robust_mean(sent, models, lambda rho: self.rule.at(server_round, nodes, rho))
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
    sent: Layers,
    models: list[dict[str, Values]],
    rule: Callable[[Tensor], Callable[[Tensor], Tensor]],
) -> dict[str, Values]:
    """Return the robust mean of models, layer by layer in their own types.

    Parameters
    ----------
    sent : mapping
        rho, by layer.
    models : list of mapping
        theta_n of k clients.
    rule : callable
        From rho ``(d,)`` to the rule at rho: from rows ``(k, d)`` to k times their mean.

    Examples
    --------
    >>> zero = {"w": np.zeros(1)}
    >>> models = [{"w": np.array([x])} for x in (1.0, 2.0, 900.0)]
    >>> robust_mean(zero, models, lambda rho: lambda rows: 3 * rows.median(dim=0).values)
    {'w': array([2.])}
    """
    layout = Layout.of(models[0])
    rho = layout.vector(sent)
    rows = torch.stack([rho - layout.vector(model) for model in models])
    direction = rule(rho)(rows)
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
