"""A client's faults: each rejected with its reason, rho as if it had never been asked."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from pfl_flower.aggregation import Reason, total
from pfl_flower.messages import ARRAYS, CONFIG, GRADIENTS, METRICS
from strategies import ParameterServer
from tests.runs import Tamper, configure, play, tampering, trajectory

FAULTY = 1
BALLS = ("l2", "smooth-l2")
ALL = ("squared-l2", *BALLS)


def with_gradients(change: Callable[[np.ndarray], np.ndarray]) -> Tamper:
    """Return a client that reports a changed gradient."""

    def tamper(broadcast: Message, reply: Message) -> Message:
        honest = reply.content.array_records[ARRAYS][GRADIENTS].numpy()
        changed = Array(np.asarray(change(honest)))
        reply.content[ARRAYS] = ArrayRecord({GRADIENTS: changed})
        return reply

    return tamper


def with_config(**changes: object) -> Tamper:
    """Return a client that says something else of its report."""

    def tamper(broadcast: Message, reply: Message) -> Message:
        record = dict(reply.content.config_records[CONFIG])
        record.update(changes)  # type: ignore[arg-type]
        reply.content[CONFIG] = ConfigRecord(record)
        return reply

    return tamper


def last_rounds_tag(broadcast: Message, reply: Message) -> Message:
    current = broadcast.content.config_records[CONFIG]["round"]
    return with_config(round=current - 1)(broadcast, reply)  # type: ignore[operator]


def nothing(broadcast: Message, reply: Message) -> Message:
    return Message(RecordDict(), reply_to=broadcast)


def extra_array(broadcast: Message, reply: Message) -> Message:
    reply.content.array_records[ARRAYS]["more"] = Array(np.zeros(2))
    return reply


def wrong_name(broadcast: Message, reply: Message) -> Message:
    array = reply.content.array_records[ARRAYS][GRADIENTS]
    reply.content[ARRAYS] = ArrayRecord({"gradient": array})
    return reply


def garbage(broadcast: Message, reply: Message) -> Message:
    array = Array("float64", (1, 6), "numpy.ndarray", b"\x93NUMPY garbage")
    reply.content[ARRAYS] = ArrayRecord({GRADIENTS: array})
    return reply


def objects(broadcast: Message, reply: Message) -> Message:
    array = Array("object", (1, 6), "numpy.ndarray", b"\x80\x04N.")
    reply.content[ARRAYS] = ArrayRecord({GRADIENTS: array})
    return reply


def raising(broadcast: Message, reply: Message) -> Message:
    raise RuntimeError("out of\nmemory")


FAULTS: dict[str, tuple[Tamper, Reason, tuple[str, ...]]] = {
    "ten times lam": (
        with_gradients(lambda g: 10 * g / np.linalg.norm(g)),
        Reason.OUTSIDE_GRAD,
        BALLS,
    ),
    "NaN": (with_gradients(lambda g: g * math.nan), Reason.NOT_FINITE, ALL),
    "infinite": (with_gradients(lambda g: g * math.inf), Reason.NOT_FINITE, ALL),
    "too long": (with_gradients(lambda g: np.hstack([g, g[:, :1]])), Reason.WRONG_SHAPE, ALL),
    "length one": (with_gradients(lambda g: g[0, :1]), Reason.WRONG_SHAPE, ALL),
    "two rows": (with_gradients(lambda g: np.vstack([g, g])), Reason.WRONG_ROWS, ALL),
    "float32": (with_gradients(lambda g: g.astype(np.float32)), Reason.WRONG_DTYPE, ALL),
    "complex": (with_gradients(lambda g: g.astype(np.complex128)), Reason.WRONG_DTYPE, ALL),
    "text": (with_gradients(lambda g: g.astype("U3")), Reason.MALFORMED, ALL),
    "huge": (with_gradients(lambda g: np.zeros((1, 100_000))), Reason.TOO_LARGE, ALL),
    "another's id": (with_config(users=[0]), Reason.WRONG_USERS, ALL),
    "no ids": (with_config(users="1"), Reason.MALFORMED, ALL),
    "round as text": (with_config(round="1"), Reason.MALFORMED, ALL),
    "last round's report": (last_rounds_tag, Reason.WRONG_ROUND, ALL),
    "nothing": (nothing, Reason.MISSING_ARRAYS, ALL),
    "an extra array": (extra_array, Reason.MISSING_ARRAYS, ALL),
    "another name": (wrong_name, Reason.MISSING_ARRAYS, ALL),
    "garbage": (garbage, Reason.MALFORMED, ALL),
    "pickled objects": (objects, Reason.MALFORMED, ALL),
    "an exception": (raising, Reason.CLIENT_ERROR, ALL),
}
CASES = [
    pytest.param(tamper, reason, regularizer, id=f"{name}-{regularizer}")
    for name, (tamper, reason, regularizers) in FAULTS.items()
    for regularizer in regularizers
]


class NeverAsked(ParameterServer):
    def participants(self, round: int) -> frozenset[int]:
        return super().participants(round) - {FAULTY}


@pytest.fixture(scope="module")
def references() -> dict[str, torch.Tensor]:
    """Return the trajectories of runs in which the faulty user is never asked."""
    return {
        regularizer: trajectory(
            play(configure(regularizer=regularizer), nodes=5, strategy=NeverAsked)
        )
        for regularizer in ALL
    }


@pytest.mark.parametrize(("tamper", "reason", "regularizer"), CASES)
def test_a_faulty_client_changes_nothing(
    tamper: Tamper, reason: Reason, regularizer: str, references: dict[str, torch.Tensor]
) -> None:
    config = configure(regularizer=regularizer)
    records = play(config, nodes=5, app=tampering(FAULTY, tamper))
    for record in records:
        assert [(fault.user, fault.reason) for fault in record.rejections] == [(FAULTY, reason)]
        assert "\n" not in record.rejections[0].detail
        assert FAULTY not in record.accepted
    assert torch.equal(trajectory(records), references[regularizer])


def test_the_honest_run_differs_from_the_reference(references: dict[str, torch.Tensor]) -> None:
    for regularizer, reference in references.items():
        assert not torch.equal(trajectory(play(configure(regularizer=regularizer))), reference)


@pytest.mark.parametrize("bad", [math.nan, 10.0])
def test_a_bad_row_among_good_ones_is_lost_alone(bad: float) -> None:
    def spoil(gradients: np.ndarray) -> np.ndarray:
        spoiled = gradients.copy()
        spoiled[FAULTY] = bad
        return spoiled

    config = configure(regularizer="l2")
    records = play(config, nodes=2, app=tampering(FAULTY, with_gradients(spoil)))
    for record in records:
        assert [fault.user for fault in record.rejections] == [FAULTY]
        assert sorted(record.accepted) == [0, 2, 3, 4]


def test_absurd_metrics_are_ignored() -> None:
    def absurd(broadcast: Message, reply: Message) -> Message:
        values = {"worst-residual": math.nan, "unconverged": -3, "accuracies": [7.0]}
        reply.content[METRICS] = MetricRecord(values)  # type: ignore[arg-type]
        return reply

    records = play(configure(), nodes=5, app=tampering(FAULTY, absurd))
    assert all(len(record.accepted) == 5 for record in records)
    assert all(record.metrics.unconverged == 0 for record in records)
    assert all(record.metrics.worst_residual < 1e-9 for record in records)


def test_all_rejected_leaves_rho_where_it_is() -> None:
    class Deaf(ParameterServer):
        def intake(self, server_round, replies):  # type: ignore[no-untyped-def]
            return super().intake(server_round, [])

    records = play(configure(), strategy=Deaf)
    assert not trajectory(records).any()
    assert {fault.reason for fault in records[0].rejections} == {Reason.NO_REPLY}
    assert len(records[0].rejections) == 5


def test_the_server_sums_what_it_accepts() -> None:
    previous = torch.zeros(6, dtype=torch.float64)
    for record in play(configure(regularizer="smooth-l2"), nodes=3):
        rows = torch.stack([record.accepted[user] for user in sorted(record.accepted)])
        assert torch.equal(record.rho, previous - record.eta * total(rows))
        assert torch.linalg.vector_norm(rows, dim=1).max() <= 1 + 1e-12
        previous = record.rho


def test_a_node_that_swears_to_be_strategic_is() -> None:
    config = configure(strategic_users="none")
    records = play(config, nodes=3, node_configs={2: {"role": "strategic"}})
    assert records[0].strategic == {4}
    named = play(configure(strategic_users="4"), nodes=3)
    assert torch.equal(trajectory(records), trajectory(named))


def test_the_honest_sum_is_given_in_the_oracle_protocol_alone() -> None:
    from pfl_flower.messages import unpack_broadcast
    from tests.runs import CPU

    seen: list[tuple[tuple[int, ...], bool]] = []

    def spy(broadcast: Message, reply: Message) -> Message:
        heard = unpack_broadcast(broadcast.content, CPU)
        seen.append((heard.users, heard.honest_sum is not None))
        return reply

    for estimator in ("inferred", "oracle"):
        for user in (0, 4):
            play(configure(estimator=estimator, rounds=2), app=tampering(user, spy))
    assert [given for _, given in seen] == [False] * 7 + [True]
