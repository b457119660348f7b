"""What is wrong with a reply to a training or an evaluation message of somebody's app."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from pfl_flower.interop.layers import FLOATING, Values, declared, read
from pfl_flower.support.errors import DataError
from pfl_flower.support.foreign_text import one_line

REASONS = ("error", "stranger", "form", "layers", "not-finite", "norm", "examples", "metrics")
"""Why a reply is taken out: it carries an error; comes from a node that was not asked, or twice;
has other records than one of arrays and one of metrics; other names, shapes or types of layers;
numbers that are not finite; too long an update; a wrong number of examples; other metrics."""
COMPLEX = "c"

Form = TypeVar("Form")


@dataclass(frozen=True)
class Fault:
    """Why a reply does not count.

    Attributes
    ----------
    node : int
        Whose it is.
    reason : str
        One of ``REASONS``.
    detail : str
        What was found.
    """

    node: int
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a reply may have; None is no limit.

    Attributes
    ----------
    norm : float or None
        Length of the update over all floating layers.
    ratio : float or None
        The same as a multiple of the round's median.
    examples : float or None
        Number of examples.
    weighted_by : str
        The metric that says it.
    same_layers : bool
        Whether layers must be those that were sent.
    """

    norm: float | None
    ratio: float | None
    examples: float | None
    weighted_by: str
    same_layers: bool


def only_asked(
    replies: Iterable[Message], asked: Mapping[int, object]
) -> tuple[list[Message], list[Fault]]:
    """Return the replies with content of nodes that were asked, the first of each."""
    kept: dict[int, Message] = {}
    faults = []
    for reply in replies:
        node = reply.metadata.src_node_id
        if reply.has_error():
            faults.append(Fault(node, "error", one_line(reply.error.reason)))
        elif node not in asked:
            faults.append(Fault(node, "stranger", "it was not asked"))
        elif node in kept:
            faults.append(Fault(node, "stranger", "it replied twice"))
        else:
            kept[node] = reply
    return list(kept.values()), faults


def model_fault(
    content: RecordDict, sent: Mapping[str, Values], limits: Limits
) -> tuple[str, str] | tuple[None, float]:
    """Return the reason and the detail of what is wrong with the arrays, or None and the norm.

    The norm is ``||theta_n - rho||`` over the floating layers, summed in float64: it is finite
    exactly if all of their numbers are, up to squares beyond the range of numbers.
    """
    records = [one for one in content.values() if isinstance(one, ArrayRecord)]
    if len(records) != 1:
        return "form", f"{len(records)} records of arrays, not 1"
    record = records[0]
    if limits.same_layers and set(record) != set(sent):
        return "layers", f"layers {one_line(', '.join(record))}"
    square = 0.0
    for name, array in record.items():
        before = sent.get(name)
        try:
            # What a header claims is compared before room is made for it.
            shape, dtype, _, _ = declared(array)
            if limits.same_layers and before is not None and shape != before.shape:
                return "layers", f"{name}: shape {shape}, not {before.shape}"
            if limits.same_layers and before is not None and not _fits(dtype, before.dtype):
                return "layers", f"{name}: {dtype}, not {before.dtype}"
            values = read(array)
        except DataError as error:
            return "layers", f"{one_line(name)}: {error}"
        if dtype.kind not in (FLOATING, COMPLEX):
            continue
        if before is None or before.shape != shape:
            before = np.zeros(shape, dtype)
        # Overflow is found below, by its result.
        with np.errstate(all="ignore"):
            square += _square(values, before)
    if math.isfinite(square):
        return None, math.sqrt(square)
    return "not-finite", "NaN, infinite, or beyond the range of numbers"


def _square(values: Values, before: Values) -> float:
    """Return ``||values - before||^2``.

    In the layer's own precision, which takes half of the time, where that has digits: a square
    that is 0 or infinite there is worked out again in float64.
    """
    way = np.subtract(values, before).ravel()
    square = float(np.vdot(way, way).real)
    if way.itemsize >= 4 and 0 < square < math.inf:
        return square
    way = np.subtract(values, before, dtype=np.promote_types(way.dtype, np.float64)).ravel()
    return float(np.vdot(way, way).real)


def _fits(dtype: np.dtype[Any], sent: np.dtype[Any]) -> bool:
    """Whether a layer may have this type: of the kind that was sent, or a counter for its mean.

    Of which width is the replies' own matter: server optimisers send float64 whatever they got.
    """
    return dtype.kind == sent.kind or (dtype.kind in "iub" and sent.kind == FLOATING)


def types_of(content: RecordDict) -> tuple[tuple[str, str], ...]:
    """Return the types of a well-formed reply's layers, by name."""
    record = next(one for one in content.values() if isinstance(one, ArrayRecord))
    return tuple(sorted((name, str(declared(array)[1])) for name, array in record.items()))


def example_fault(metrics: MetricRecord, limits: Limits) -> str:
    """Return what is wrong with the number of examples, nothing if it can be a weight."""
    name = limits.weighted_by
    value = metrics.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{name} = {one_line(value)}, not a number"
    if not math.isfinite(value) or value <= 0:
        return f"{name} = {value}, not a number above 0"
    if limits.examples is not None and value > limits.examples:
        return f"{name} = {value}, more than {limits.examples:g}"
    return ""


def metrics_of(content: RecordDict) -> MetricRecord | None:
    """Return a reply's only record of metrics, None if there is another number of them."""
    records = [one for one in content.values() if isinstance(one, MetricRecord)]
    return records[0] if len(records) == 1 else None


def form_of(metrics: MetricRecord) -> tuple[tuple[str, int], ...]:
    """Return the names of metrics, and how many numbers each is: -1 for one that is no list."""
    return tuple(
        sorted((name, len(v) if isinstance(v, list) else -1) for name, v in metrics.items())
    )


def finite_metrics(metrics: MetricRecord) -> bool:
    """Return whether all metrics are finite."""
    numbers = [v if isinstance(v, list) else [v] for v in metrics.values()]
    return all(math.isfinite(number) for some in numbers for number in some)


def commonest(groups: Sequence[Form]) -> Form:
    """Return what occurs most often; of several, what the most of the first nodes have."""
    return Counter(groups).most_common(1)[0][0]


def names_of(content: RecordDict) -> tuple[str, ...]:
    """Return the names of the records of arrays and of metrics, in order of kind."""
    kinds = (ArrayRecord, MetricRecord)
    return tuple(name for kind in kinds for name, one in content.items() if isinstance(one, kind))
