"""Sums by blocks of points: the same as in one piece, whatever the threads and the other users.

And the same without the zeros, where most features are zero.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pfl_flower.objective import point_blocks, two_layer
from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import LOSSES
from pfl_flower.objective.models import Linear
from pfl_flower.objective.sparse_features import Compressed
from pfl_flower.objective.two_layer import TwoLayer
from tests.support import problems

USERS, POINTS, INPUTS = 3, 101, 7
OUTPUTS = {"softmax": 4, "logistic": 1, "least-squares": 1}


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with point_blocks.thread_limit(request.param):
        yield request.param


def build(
    name: str, dtype: torch.dtype = torch.float64, *, zeros: float = 0.0, compress: bool = True
) -> tuple[LocalLoss, Tensor, Tensor]:
    """Return users' losses with uneven weights, thetas and directions; so many features are 0."""
    seed, outputs = problems.generator(5), OUTPUTS[name]
    features = problems.normal(USERS, POINTS, INPUTS, seed=seed)
    features[torch.rand(features.shape, generator=problems.generator(6)) < zeros] = 0.0
    labels = torch.randint(max(outputs, 2), (USERS, POINTS), generator=seed)
    if name != "softmax":
        labels = 2 * labels.to(dtype) - 1
    loss = LocalLoss.build(
        Linear(inputs=INPUTS, outputs=outputs),
        LOSSES[name](),
        features.to(dtype),
        labels,
        weights=problems.normal(USERS, POINTS, seed=seed).abs().to(dtype),
        nu=0.3,
        reduction="mean",
        compress=compress,
    )
    theta, direction = (problems.normal(USERS, outputs * INPUTS, seed=seed) for _ in range(2))
    return loss, theta.to(dtype), direction.to(dtype)


QUANTITIES: dict[str, Callable[[LocalLoss, Tensor, Tensor], Tensor]] = {
    "value": lambda loss, theta, _: loss.value(theta),
    "gradient": lambda loss, theta, _: loss.gradient(theta),
    "both, value": lambda loss, theta, _: loss.value_and_gradient(theta)[0],
    "both, gradient": lambda loss, theta, _: loss.value_and_gradient(theta)[1],
    "moments": lambda loss, theta, _: loss.second_moments(theta),
    "diagonal": lambda loss, theta, _: loss.second_moments(theta, diagonal=True),
    "product": lambda loss, theta, v: loss.hessian_product(theta, v),
    "map": lambda loss, theta, v: loss.hessian_map(theta)(2 * v) / 2,
}


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize(("numbers", "points"), [(40, 6), (100, 13), (300, 34)])
def test_blocks_change_nothing(
    quantity: str,
    name: str,
    numbers: int,
    points: int,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks of so many points, of which the last is shorter."""
    compute = QUANTITIES[quantity]
    loss, theta, direction = build(name)
    whole = compute(loss, theta, direction)
    monkeypatch.setattr(point_blocks, "BLOCK", numbers)
    loss, theta, direction = build(name)
    assert [part.features.shape[1] for _, part in loss.parts[:2]] == [points, points]
    assert len(loss.parts) == USERS * -(-POINTS // points)
    torch.testing.assert_close(compute(loss, theta, direction), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("name", OUTPUTS)
def test_leaving_out_zeros_changes_nothing(
    quantity: str, name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_blocks, "BLOCK", 100)
    monkeypatch.setattr(point_blocks, "KEPT", 20)
    compute, found = QUANTITIES[quantity], []
    for compress in (False, True):
        loss, theta, direction = build(name, zeros=0.9, compress=compress)
        assert all((part.compressed is not None) == compress for _, part in loss.parts)
        kept = int(loss.features.count_nonzero())
        assert len(loss.parts) >= (kept / 20 if compress else USERS * POINTS * INPUTS / 100)
        found.append(compute(loss, theta, direction))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("zeros", [0.0, 0.9])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_padding_is_in_no_block(
    quantity: str, zeros: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's bits are those without it, and where all its points weigh 1 none is weighed."""
    monkeypatch.setattr(point_blocks, "BLOCK", 100)
    monkeypatch.setattr(point_blocks, "KEPT", 20)
    loss, theta, direction = build("softmax", zeros=zeros)
    found = []
    for room in (0, 5):
        features = functional.pad(loss.features, (0, 0, 0, room))
        labels = functional.pad(loss.labels, (0, room))
        weights = functional.pad(torch.ones_like(loss.weights), (0, room))
        same = LocalLoss.build(loss.model, loss.loss, features, labels, weights=weights)
        assert all(part.plain for _, part in same.parts)
        assert sum(part.features.shape[1] for _, part in same.parts) == USERS * POINTS
        found.append(QUANTITIES[quantity](same, theta, direction))
    assert torch.equal(*found)


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([2, 0]), torch.tensor([1])], ids=str)
def test_users_are_selected_with_what_was_compressed(
    index: slice | Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_blocks, "BLOCK", 300)
    monkeypatch.setattr(point_blocks, "KEPT", 25)
    loss, theta, _ = build("softmax", zeros=0.9)
    some = loss.select(index)
    kept = {id(part) for _, part in loss.parts}
    assert {id(part) for _, part in some.parts} <= kept
    assert torch.equal(some.gradient(theta[index]), loss.gradient(theta)[index])


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([2, 0]), torch.tensor([1])], ids=str)
def test_so_are_those_of_two_layers(index: slice | Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_layer, "TURNED", 0)
    model = TwoLayer(INPUTS, OUTPUTS["softmax"], 5)
    loss = replace(build("softmax", zeros=0.9)[0], model=model)
    theta = problems.normal(USERS, model.dim, seed=problems.generator(1))
    some = loss.select(index)
    whose = torch.arange(USERS)[index].tolist()
    assert None not in loss._kept
    assert all(a is loss._kept[user] for a, user in zip(some._kept, whose, strict=True))
    assert torch.equal(some.gradient(theta[index]), loss.gradient(theta)[index])


def test_few_points_of_two_layers_are_left_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(point_blocks, "BLOCK", 300)
    monkeypatch.setattr(Compressed, "scores", lambda *_: pytest.fail("of no use"))
    loss = replace(build("softmax", zeros=0.9)[0], model=TwoLayer(INPUTS, OUTPUTS["softmax"], 5))
    theta = problems.normal(USERS, loss.model.dim, seed=problems.generator(1))
    some = loss.select(slice(1, 3))
    torch.testing.assert_close(some.gradient(theta[1:3]), loss.gradient(theta)[1:3])
    torch.testing.assert_close(some.value(theta[1:3]), loss.value(theta)[1:3])


@pytest.mark.parametrize(("zeros", "expected"), [(0.0, False), (0.4, False), (0.9, True)])
def test_features_are_compressed_where_many_are_zero(
    zeros: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_blocks, "BLOCK", 300)
    loss, _, _ = build("softmax", zeros=zeros)
    assert {part.compressed is not None for _, part in loss.parts} == {expected}
    few = loss.minibatch(torch.arange(90).repeat(USERS, 1), torch.tensor([POINTS] * USERS))
    assert point_blocks.pays(few.features)
    assert all(part.compressed is None for _, part in few.parts), "used once"


@pytest.mark.parametrize("name", OUTPUTS)
def test_both_at_once_are_what_each_is_alone(name: str) -> None:
    loss, theta, _ = build(name)
    value, gradient = loss.value_and_gradient(theta)
    torch.testing.assert_close(value, loss.value(theta), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, loss.gradient(theta), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OUTPUTS)
def test_second_moments_are_the_mean_diagonal_block(name: str) -> None:
    loss, theta, _ = build(name)
    hessian = loss.hessian(theta) - 2 * loss.nu * torch.eye(theta.shape[1], dtype=theta.dtype)
    split = hessian.view(USERS, OUTPUTS[name], INPUTS, OUTPUTS[name], INPUTS)
    mean = torch.diagonal(split, dim1=1, dim2=3).mean(dim=-1)
    torch.testing.assert_close(loss.second_moments(theta), mean, rtol=1e-10, atol=1e-12)
    alone = loss.second_moments(theta, diagonal=True)
    torch.testing.assert_close(alone, mean.diagonal(dim1=1, dim2=2), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_bits_depend_on_nobody_else(
    zeros: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_blocks, "BLOCK", 60)
    monkeypatch.setattr(point_blocks, "KEPT", 25)
    loss, theta, _ = build("softmax", torch.float32, zeros=zeros)
    with point_blocks.thread_limit(1):
        alone = []
        for user in range(USERS):
            other = build("softmax", torch.float32, zeros=zeros)[0]
            own = replace(
                other,
                features=other.features[user : user + 1],
                labels=other.labels[user : user + 1],
                weights=other.weights[user : user + 1],
                scale=other.scale[user : user + 1],
            )
            alone.append(own.gradient(theta[user : user + 1])[0])
    assert torch.equal(loss.gradient(theta), torch.stack(alone))


@pytest.mark.parametrize(
    ("points", "expected"),
    [(2, False), (2 * point_blocks.BLOCK, True), (2 * point_blocks.BLOCK - 1, False)],
)
def test_few_points_stay_together(points: int, expected: bool) -> None:
    """Each user's own number of points decides, not the number of users."""
    features = torch.zeros(1, 1, 1).expand(1, points, 1)
    assert point_blocks.pays(features) == point_blocks.pays(features.expand(50, -1, -1)) == expected


@pytest.mark.parametrize("zeros", [0.0, 0.9])
@pytest.mark.parametrize("numbers", [60, 2**20], ids=["blocks", "at once"])
def test_data_are_freed_with_their_loss(
    numbers: int, zeros: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of users follow one another: none may wait for the garbage collector."""
    monkeypatch.setattr(point_blocks, "BLOCK", numbers)
    monkeypatch.setattr(point_blocks, "KEPT", numbers)
    loss, theta, direction = build("softmax", zeros=zeros)
    gc.disable()
    try:
        loss.value_and_gradient(theta)
        loss.hessian_product(theta, direction)
        left = weakref.ref(loss)
        del loss
        assert left() is None
    finally:
        gc.enable()


def test_threads_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with point_blocks.thread_limit(2):
        seen = point_blocks.each(
            lambda k: torch.tensor([torch.get_num_threads(), k]), [(0,), (1,), (2,)]
        )
        assert torch.stack(seen).tolist() == [[1, 0], [1, 1], [1, 2]]
        assert torch.get_num_threads() == 2


def test_a_failure_in_a_thread_is_seen() -> None:
    def fail(number: int) -> Tensor:
        raise RuntimeError(f"block {number}")

    with point_blocks.thread_limit(2), pytest.raises(RuntimeError, match="block"):
        point_blocks.each(fail, [(0,), (1,)])
