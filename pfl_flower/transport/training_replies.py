"""A node's answer to a broadcast, as Flower records: written by nodes, read as nobody's word."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from pfl_flower.aggregation.reports import Reason, Report, ReportError
from pfl_flower.transport.node_metrics import METRICS, NodeMetrics
from pfl_flower.transport.records import (
    ARRAYS,
    CONFIG,
    FRAME_BYTES,
    content_bytes,
    integer,
    integers,
    packed,
)
from pfl_flower.transport.wire import filled, find, plain, to_record

GRADIENTS = "gradients"
USER_BYTES = 64
"""Room in a reply for what is said of each user, besides its numbers."""
ACCURACY_BYTES = 16
"""An accuracy, and whose it is."""


def largest_reply(users: int, row_bytes: int, measured: int = 0) -> int:
    """Return the most bytes of a training reply: its rows, 64 for each user, and 4096.

    Where the accuracies of ``measured`` local models are to come with it, 16 more for each.

    >>> largest_reply(users=2, row_bytes=80), largest_reply(users=2, row_bytes=80, measured=3)
    (4384, 4432)
    """
    return users * (row_bytes + USER_BYTES) + measured * ACCURACY_BYTES + FRAME_BYTES


def pack_report(report: Report, metrics: NodeMetrics) -> RecordDict:
    """Return the content of a training reply."""
    config = {"round": report.round, "users": packed(report.users)}
    records = {
        ARRAYS: to_record({GRADIENTS: report.gradients}),
        CONFIG: filled(ConfigRecord, config),
        METRICS: metrics.pack(),
    }
    return filled(RecordDict, records)


def unpack_report(content: RecordDict, *, max_bytes: int) -> Report:
    """Return the report in a training reply from a node that is not trusted.

    Raises
    ------
    ReportError
        If the reply is larger than ``max_bytes``, if records or arrays are missing, superfluous, or
        not what they say they are.
    """
    size = content_bytes(content)
    if size > max_bytes:
        raise ReportError(Reason.TOO_LARGE, f"{size} bytes: expected <= {max_bytes}")
    arrays, config = find(content, ARRAYS, ArrayRecord), find(content, CONFIG, ConfigRecord)
    records = [record for record in content.values() if isinstance(record, ArrayRecord)]
    found = [key for record in records for key in record]
    if arrays is None or config is None or found != [GRADIENTS] or GRADIENTS not in arrays:
        raise ReportError(Reason.MISSING_ARRAYS, f"arrays {found[:4]}: expected ['{GRADIENTS}']")
    try:
        gradients = _decode(arrays[GRADIENTS])
        users, round = integers(config, "users"), integer(config, "round")
    except Exception as error:  # numpy and torch raise what they like on hostile bytes
        raise ReportError(Reason.MALFORMED, f"{type(error).__name__}: {error}") from None
    return Report(round=round, users=users, gradients=gradients)


def _decode(array: Array) -> Tensor:
    tensor = plain(array)
    if tensor is not None:
        return tensor
    values = array.numpy()
    if not isinstance(values, np.ndarray) or values.nbytes > len(array.data):
        raise ValueError("the array does not match its header")
    return torch.from_numpy(np.ascontiguousarray(values))
