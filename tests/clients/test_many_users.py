"""What makes many users cheap: rows, draws, stacks, arrays; each equal to its plain form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from pfl_flower.aggregation.combination import combine
from pfl_flower.aggregation.rows import Rows
from pfl_flower.data.synthetic import Synthetic
from pfl_flower.objective import shared_points, two_layer
from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import Softmax
from pfl_flower.objective.models import Linear, Model, accuracy
from pfl_flower.objective.two_layer import TwoLayer
from pfl_flower.objective.user_data import UserData, stack
from pfl_flower.run.problem import build_problem
from pfl_flower.support.seeding import generator
from pfl_flower.transport.inprocess import InProcessGrid
from tests.support import problems
from tests.support.runs import configure


class TestRows:
    def test_come_in_the_order_of_the_users(self) -> None:
        rows = Rows.of({5: torch.ones(2), 1: torch.zeros(2)})
        both = Rows.merge([rows, Rows.none(), Rows.of({3: torch.full((2,), 7.0)})])
        assert list(both) == [1, 3, 5]
        assert both.values_by_user.tolist() == [[0, 0], [7, 7], [1, 1]]
        assert both[3].tolist() == [7, 7]
        assert [user in both for user in (0, 1, 2, 5, 6)] == [False, True, False, True, False]
        assert list(both.select(torch.tensor([False, True, True]))) == [3, 5]

    def test_of_nobody(self) -> None:
        assert not Rows.merge([])
        assert 0 not in Rows.none()
        assert not Rows.of({})


def greedy(rows: Rows) -> list[int]:
    """One row after the other, as long as the sum is finite."""
    total, kept = torch.zeros(1, dtype=torch.float64), []
    for user, row in rows.items():
        if torch.isfinite(total + row).all():
            total, kept = total + row, [*kept, user]
    return kept


@pytest.mark.parametrize("bad", [(), (0,), (17, 18, 400), (999,)])
def test_a_few_rows_too_many_cost_a_few_sums(bad: tuple[int, ...]) -> None:
    values = torch.rand((1000, 1), generator=generator(1), dtype=torch.float64)
    for user in bad:
        values[user] = 1.7e308
    calls = []

    def rule(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        return rows.sum(dim=0)

    rows = Rows.of(dict(enumerate(values)))
    direction, kept, lost = combine(rows, torch.ones(1, dtype=torch.float64), 1.0, rule)
    assert list(kept) == greedy(rows)
    assert len(kept) + len(lost) == 1000
    assert torch.equal(direction, kept.values_by_user.sum(dim=0))
    assert len(calls) <= 60


SOURCES = {
    "linear": Synthetic("least-squares", 5, 3),
    "logistic": Synthetic("logistic", 5, 3),
    "linear, noise": Synthetic("least-squares", 5, 3, label_noise=0.4),
    "logistic, noise": Synthetic("logistic", 5, 3, label_noise=0.4),
    "digits": build_problem(configure(dataset="digits")).source,
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("points", [1, 3, 40])
def test_many_draws_are_single_draws(name: str, points: int) -> None:
    """To the bit: torch draws fewer than 16 numbers in another way than more."""
    users = (4, 0, 123)
    together = SOURCES[name].draw_many(users, points, 7)
    for row, user in enumerate(users):
        alone = SOURCES[name].draw(user, points, 7)
        assert torch.equal(together.features[row], alone.features)
        assert torch.equal(together.labels[row], alone.labels)
        assert together.labels.dtype == alone.labels.dtype


@pytest.mark.parametrize("reduction", ["sum", "mean", "scaled-sum"])
def test_a_problem_draws_what_its_source_does(reduction: str) -> None:
    """Users of 17 and 18 points share a stack, those of 3 have another."""
    config = configure(points_per_user="18,3,17,3", reduction=reduction)
    problem = build_problem(config)
    users = (0, 1, 2, 4)
    weight = 5 / (18 + 3 + 17 + 3 + 3) if reduction == "scaled-sum" else 1.0
    data = []
    for user in users:
        one = problem.source.draw(user, problem.points[user], config.seed)
        weights = torch.full((len(one.labels),), weight, dtype=torch.float64)
        data.append(UserData(one.features, one.labels, weights))
    theta = problems.normal(4, 6, seed=problems.generator(1))
    expected = problem.population_of(data)
    assert torch.equal(problem.population(users).gradient(theta), expected.gradient(theta))
    assert torch.equal(problem.population(users).value(theta), expected.value(theta))


def test_a_user_of_many_points_beside_users_of_few_is_not_their_padding() -> None:
    sizes = (60_000, *[10] * 10)
    users = [UserData(torch.ones(n, 2), torch.zeros(n)) for n in sizes]
    stacks = stack(users, torch.float32)
    assert [one.rows.tolist() for one in stacks] == [list(range(1, 11)), [0]]
    held = sum(one.data.features.numel() for one in stacks)
    assert held <= 1.125 * 2 * sum(sizes)
    assert [float(one.data.weights.sum()) for one in stacks] == [100.0, 60_000.0]  # type: ignore[union-attr]


@pytest.mark.parametrize("model", [Linear(4, 3), Linear(4, 1), TwoLayer(4, 3, hidden=5)])
def test_accuracies_of_many_are_those_of_each(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = problems.generator(2)
    theta, features = problems.normal(7, model.dim, seed=draw), problems.normal(30, 4, seed=draw)
    labels = torch.randint(0, 3, (30,), generator=draw)
    if model.outputs == 1:
        labels = 1 - 2 * (labels > 0).long()
    expected = [float(accuracy(model.scores(one[None], features), labels)[0]) for one in theta]
    points = shared_points.SharedPoints(features, labels)
    for at_once in (1, 200, 2**21):
        monkeypatch.setattr(shared_points, "SCORES_AT_ONCE", at_once)
        assert points.accuracy_of_each(model, theta).tolist() == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize("zeros", [0, 8], ids=["all", "without zeros"])
@pytest.mark.parametrize("soft", [False, True])
def test_the_two_layers_gradient_is_autograds(
    soft: bool, zeros: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three points at a time; a hidden unit at 0 has slope 0, as torch's."""
    monkeypatch.setattr(two_layer, "POINTS_AT_ONCE", 3)
    monkeypatch.setattr(two_layer, "TURNED", 0)
    draw, model = problems.generator(3), TwoLayer(4, 3, hidden=5)
    labels = torch.randint(0, 3, (2, 7), generator=draw)
    if soft:
        labels = torch.softmax(problems.normal(2, 7, 3, seed=draw), dim=-1)
    features, weights = problems.normal(2, 7, 4, seed=draw), torch.rand(2, 7).double()
    features[0, 1] = 0.0
    features[0].view(-1)[4 : 4 + 2 * zeros] = 0.0  # of user 0 alone
    loss = LocalLoss.build(
        model, Softmax(), features, labels, weights=weights, nu=0.3, reduction="mean"
    )
    assert [kept is not None for kept in loss._kept] == [zeros > 0, False]
    theta = problems.normal(2, model.dim, seed=draw)
    expected = torch.func.grad(lambda t: loss.value(t).sum())(theta)
    torch.testing.assert_close(loss.gradient(theta), expected, rtol=1e-12, atol=1e-12)


def meddling() -> ClientApp:
    """Return an app that changes all it is given, in place, and fails if it is told to."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        before = context.state.get("own", ArrayRecord({"a": Array(np.zeros(2))}))
        seen = [record["a"].numpy().tolist() for record in (message.content["sent"], before)]  # type: ignore[index]
        for record in (message.content["sent"], before):
            record["a"].data = Array(np.ones(2) * 9).data  # type: ignore[index, union-attr]
            record["b"] = record["a"]  # type: ignore[index]
        context.state["own"] = before
        context.run_config["more"] = 1
        message.metadata.__dict__["_group_id"] = "other"
        if message.metadata.ttl < 100:
            raise ValueError("no")
        reply = ArrayRecord({"seen": Array(np.array(seen))})
        return Message(RecordDict({"reply": reply, "own": before}), reply_to=message)

    return app


def test_a_node_changes_nothing_but_its_own_state_in_place() -> None:
    grid = InProcessGrid(meddling(), nodes=2, run_config={})
    record = ArrayRecord({"a": Array(np.zeros(2))})
    said = []
    for ttl in (200.0, 50.0, 200.0):
        message = Message(RecordDict({"sent": record}), 1000, MessageType.TRAIN, ttl=ttl)
        (reply,) = grid.send_and_receive([message])
        assert message.metadata.group_id == ""
        assert list(record) == ["a"]
        assert not record["a"].numpy().any()
        if reply.has_content():
            said.append(reply.content["reply"]["seen"].numpy()[1].tolist())  # type: ignore[index]
            reply.content["own"]["a"].data = b""  # type: ignore[index]
    assert said == [[0, 0], [9, 9]]
    assert "own" not in grid.contexts[1001].state
    assert "more" not in grid.contexts[1001].run_config


def test_a_failed_round_leaves_no_trace_in_the_state() -> None:
    grid = InProcessGrid(meddling(), nodes=1, run_config={})
    for ttl in (50.0, 50.0):
        record = RecordDict({"sent": ArrayRecord({"a": Array(np.zeros(2))})})
        (reply,) = grid.send_and_receive([Message(record, 1000, MessageType.TRAIN, ttl=ttl)])
        assert reply.has_error()
        assert len(grid.contexts[1000].state) == 0
        assert not grid.contexts[1000].run_config
