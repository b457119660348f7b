"""A client's faults: each rejected with its reason, rho as if it had never been asked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from pfl_flower.aggregation.combination import total
from pfl_flower.aggregation.reports import Reason
from pfl_flower.client_app import app as client_app
from pfl_flower.run.problem import build_problem
from pfl_flower.transport.node_metrics import METRICS, NodeMetrics
from pfl_flower.transport.nonces import nonce_of, signed
from pfl_flower.transport.questions import unpack_question
from strategies.measuring import Measuring
from strategies.parameter_server import ParameterServer
from tests.support.faults import ALL, FAULTS, HARMLESS, with_gradients
from tests.support.runs import Tamper, configure, play, tampering, trajectory

FAULTY = 1
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
            play(configure(regularizer=regularizer, rounds=3), nodes=5, strategy=NeverAsked)
        )
        for regularizer in ALL
    }


@pytest.mark.parametrize(("tamper", "reason", "regularizer"), CASES)
def test_a_faulty_client_changes_nothing(
    tamper: Tamper, reason: Reason, regularizer: str, references: dict[str, torch.Tensor]
) -> None:
    config = configure(regularizer=regularizer, rounds=3)
    records = play(config, nodes=5, app=tampering(FAULTY, tamper))
    assert len(records) == 3
    for record in records:
        assert [(fault.user, fault.reason) for fault in record.rejections] == [(FAULTY, reason)]
        assert "\n" not in record.rejections[0].detail
        assert FAULTY not in record.accepted
    assert torch.equal(trajectory(records), references[regularizer])


@pytest.mark.parametrize("regularizer", ALL)
@pytest.mark.parametrize("fault", ["an exception", "NaN"])
def test_a_round_without_a_single_report_leaves_rho(fault: str, regularizer: str) -> None:
    """All users are on the one node that fails."""
    tamper, reason, _ = FAULTS[fault]
    config = configure(regularizer=regularizer, rounds=2)
    records = play(config, nodes=1, app=tampering(FAULTY, tamper))
    assert len(records) == 2
    for record in records:
        assert record.reasons() == {reason: config.users}
        assert not record.accepted
        assert torch.equal(record.rho, build_problem(config).initial)


def test_the_honest_run_differs_from_the_reference(references: dict[str, torch.Tensor]) -> None:
    for regularizer, reference in references.items():
        assert not torch.equal(
            trajectory(play(configure(regularizer=regularizer, rounds=3))), reference
        )


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


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_valid_counts_and_absurd_metrics_are_left_out(name: str) -> None:
    tamper, absurd = HARMLESS[name]
    records = play(configure(rounds=2), nodes=5, app=tampering(FAULTY, tamper))
    for record in records:
        assert len(record.accepted) == 5 and not record.rejections
        assert record.notices == ({"absurd": absurd} if absurd else {})
        assert record.metrics.unconverged == 0
        assert record.metrics.worst_residual < 1e-9
        assert not record.metrics.accuracies or set(record.metrics.accuracies) == {FAULTY}


def test_nobody_speaks_for_anothers_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    """User 1's node says that everybody's local model is useless; only its own word counts.

    Asked by messages, as on users' own test sets; with reports: see ``test_measuring``.
    """
    monkeypatch.setattr(Measuring, "with_reports", lambda *args: {})
    app = ClientApp()

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        _, users = unpack_question(message.content)
        said = NodeMetrics(accuracies=dict.fromkeys(range(5), 0.0) if FAULTY in users else {0: 1.0})
        content = signed(RecordDict({METRICS: said.pack()}), nonce_of(message.content))
        return Message(content, reply_to=message)

    for register in (app.query, app.train):
        register()(client_app)
    records = play(configure(rounds=1, evaluate_every=1), nodes=5, app=app)
    assert records[0].accuracies == {0: 1.0, 1: 0.0}


@pytest.mark.parametrize("name", ["NaN", "an exception", "garbage", "float32", "huge"])
def test_when_everybody_is_faulty_rho_stays_and_the_run_ends(name: str) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return FAULTS[name][0](message, client_app(message, context))

    for register in (app.query, app.evaluate):
        register()(client_app)
    records = play(configure(), nodes=5, app=app)
    assert len(records) == 6
    assert not trajectory(records).any()
    assert {fault.user for fault in records[5].rejections} >= {1, 2, 3, 4}


def test_all_rejected_leaves_rho_where_it_is() -> None:
    class Deaf(ParameterServer):
        def read(self, server_round, replies):  # type: ignore[no-untyped-def]
            return super().read(server_round, [])

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
    from pfl_flower.transport.broadcasts import unpack_broadcast
    from tests.support.runs import CPU

    seen: list[tuple[tuple[int, ...], bool]] = []

    def spy(broadcast: Message, reply: Message) -> Message:
        heard = unpack_broadcast(broadcast.content, CPU)
        seen.append((heard.users, heard.honest_sum is not None))
        return reply

    for estimator in ("inferred", "oracle"):
        for user in (0, 4):
            play(configure(estimator=estimator, rounds=2), app=tampering(user, spy))
    assert [given for _, given in seen] == [False] * 7 + [True]
