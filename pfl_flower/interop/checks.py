"""What is wrong with a reply to a training or an evaluation message of somebody's app."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from pfl_flower.interop.layers import FLOATING, Header, Values, declared, read
from pfl_flower.support.errors import DataError
from pfl_flower.support.foreign_text import one_line

REASONS = (
    *("error", "forged", "stranger", "form", "layers", "not-finite", "norm", "examples"),
    "metrics",
)
"""Why a reply is taken out: it carries an error; does not bring back the secret of its question;
comes from a node that was not asked, or twice; has other records than one of arrays and one of
metrics; other names, shapes or types of layers; numbers that are not finite; too long an update; a
wrong number of examples; other metrics."""
COMPLEX = "c"
PIECE = 2**16
"""Numbers of a layer that are compared at a time."""

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


@dataclass(frozen=True)
class Sound:
    """What is known of a reply's arrays that are well-formed.

    Attributes
    ----------
    norm : float
        Length of the update.
    types : tuple of tuple of str
        Names of the layers, sorted, and the type of each.
    """

    norm: float
    types: tuple[tuple[str, str], ...]


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


def sound_or_fault(
    content: RecordDict, sent: Mapping[str, Values], limits: Limits
) -> Sound | tuple[str, str]:
    """Return what a reply's arrays are, or the reason and the detail of what is wrong with them.

    The norm is ``||theta_n - rho||`` over the floating layers, summed in float64: it is finite
    exactly if all of their numbers are, up to squares beyond the range of numbers.
    """
    records = [one for one in content.values() if isinstance(one, ArrayRecord)]
    if len(records) != 1:
        return "form", f"{len(records)} records of arrays, not 1"
    record = records[0]
    if limits.same_layers and set(record) != set(sent):
        return "layers", f"layers {one_line(', '.join(record))}"
    square, types = 0.0, []
    for name, array in record.items():
        before = sent.get(name)
        try:
            # What a header claims is compared before room is made for it.
            header = declared(array)
            if limits.same_layers and before is not None and (fault := _unlike(header, before)):
                return "layers", f"{one_line(name)}: {fault}"
            values = read(array, header)
        except DataError as error:
            return "layers", f"{one_line(name)}: {error}"
        types.append((name, str(header.dtype)))
        if header.dtype.kind not in (FLOATING, COMPLEX):
            continue
        if before is None or before.shape != header.shape:
            before = np.zeros(header.shape, header.dtype)
        # Overflow is found below, by its result.
        with np.errstate(all="ignore"):
            square += _square(values, before)
    if not math.isfinite(square):
        return "not-finite", "NaN, infinite, or beyond the range of numbers"
    return Sound(math.sqrt(square), tuple(sorted(types)))


def _unlike(header: Header, before: Values) -> str:
    """Return how a layer's header differs from the layer that was sent, nothing if it may be so.

    Of which width its numbers are is the replies' own matter: server optimisers send float64
    whatever they got. A server that averages counters sends their mean.
    """
    shape, dtype, sent = header.shape, header.dtype, before.dtype
    if shape != before.shape:
        return f"shape {shape}, not {before.shape}"
    if dtype.kind == sent.kind or (dtype.kind in "iub" and sent.kind == FLOATING):
        return ""
    return f"{dtype}, not {sent}"


def _square(values: Values, before: Values) -> float:
    """Return ``||values - before||^2``: by pieces that stay in the processor's cache."""
    now, old = values.reshape(-1), before.reshape(-1)
    pieces = range(0, len(now), PIECE)
    return sum(_square_of(now[at : at + PIECE], old[at : at + PIECE]) for at in pieces)


def _square_of(now: Values, old: Values) -> float:
    """Return ``||now - old||^2`` of two vectors.

    In their own precision, which takes half of the time, where that has digits: a square that is 0
    or infinite there is worked out again in float64.
    """
    way = np.subtract(now, old)
    square = float(np.vdot(way, way).real)
    if way.itemsize >= 4 and 0 < square < math.inf:
        return square
    way = np.subtract(now, old, dtype=np.promote_types(way.dtype, np.float64))
    return float(np.vdot(way, way).real)


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
