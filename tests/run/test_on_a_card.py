"""What is worked out by other operations on a card is what the processor works out.

On a card that is not there: what its tensors are given is done by this machine, in the same order;
and on one that is, if there is one.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfl_flower.aggregation.combination import total
from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import Logistic, PointLoss, Softmax
from pfl_flower.objective.models import Linear
from pfl_flower.objective.vectors import finite, ratio
from pfl_flower.solvers.optimizer_steps import StepState, adam_step
from pfl_flower.transport.wire import to_array, to_tensor
from tests.support.card import DEVICE, Card

DTYPES = (torch.float32, torch.float64)
CARDS = [
    pytest.param(DEVICE, id="stand-in"),
    pytest.param(
        torch.device("cuda"),
        id="cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
        ],
    ),
]


@pytest.fixture(params=CARDS)
def card(request: pytest.FixtureRequest) -> torch.device:
    """Where it is worked out; the stand-in is there while ``Card`` is entered."""
    device: torch.device = request.param
    return device


def rows(dtype: torch.dtype) -> Tensor:
    """Return rows of every size, and two that are not finite."""
    limits = torch.finfo(dtype)
    sizes = torch.tensor([1.0, limits.max / 3, limits.tiny, 0.0, torch.inf, torch.nan], dtype=dtype)
    one = torch.tensor([[0.5, -1.0, 0.25]], dtype=dtype)
    return torch.cat([one * size for size in sizes])


@pytest.mark.parametrize("dtype", DTYPES)
def test_which_vectors_are_finite(card: torch.device, dtype: torch.dtype) -> None:
    with Card():
        found = finite(rows(dtype).to(card)).cpu()
        several = finite(rows(dtype).to(card)[:, 0]).cpu()
    assert found.tolist() == finite(rows(dtype)).tolist() == [True] * 4 + [False] * 2
    assert not bool(several)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divisor", [1.0, 3.0, 1e-30, 1e30])
def test_a_ratio_is_finite_and_as_long_as_it_can_be(
    card: torch.device, dtype: torch.dtype, divisor: float
) -> None:
    limit = torch.finfo(dtype).max / 4
    for vector in rows(dtype)[:3]:
        expected = ratio(vector, divisor)
        with Card():
            found = ratio(vector.to(card), divisor).cpu()
        assert bool(found.isfinite().all())
        if expected.abs().amax() < limit:
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        else:
            # Between a quarter of the range and all of it the processor leaves what is finite.
            assert found.abs().amax() == pytest.approx(limit, rel=1e-6)
            torch.testing.assert_close(found / limit, vector / vector.abs().amax())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_does_not_overflow_on_the_way(card: torch.device, dtype: torch.dtype) -> None:
    huge = torch.finfo(dtype).max / 2
    given = torch.tensor([[huge]] * 16 + [[-huge]] * 15, dtype=dtype)
    with Card():
        assert float(total(given.to(card))) == pytest.approx(huge, rel=1e-6)
    tiny = torch.full((3, 2), torch.finfo(dtype).tiny, dtype=dtype)
    with Card():
        assert torch.equal(total(tiny.to(card)).cpu(), 3 * tiny[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [(3.0, 3.0, 3.0), (3.0, 0.0, 3.0)])
def test_adam_steps_and_has_none_where_its_moment_is_infinite(
    card: torch.device, dtype: torch.dtype, steps: tuple[float, ...]
) -> None:
    theta = torch.linspace(-1, 1, 15, dtype=dtype).view(3, 5)
    gradient = torch.cos(theta)
    gradient[2] = torch.finfo(dtype).max / 2
    state = StepState(torch.tensor(steps), theta / 7, theta.square())
    expected, after = adam_step(theta, gradient, state, 0.01)
    with Card():
        there = (theta.to(card), gradient.to(card))
        own = StepState(state.steps, state.first.to(card), state.second.to(card))
        moved, later = adam_step(*there, own, 0.01)
        found = [one.cpu() for one in (moved, later.first, later.second, there[0], own.second)]
    rtol = 1e-5 if dtype == torch.float32 else 1e-13
    goals = [expected, after.first, after.second, theta, state.second]
    for one, goal in zip(found, goals, strict=True):
        torch.testing.assert_close(one, goal, rtol=rtol, atol=rtol, equal_nan=True)
    assert found[0][:2].isfinite().all() and found[0][2].isnan().all()
    assert torch.equal(later.steps, after.steps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (2, 7)])
def test_cross_entropy_and_its_slope(
    card: torch.device, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    numbers = torch.arange(torch.Size(shape).numel() * 4, dtype=dtype)
    scores = (100 * torch.sin(numbers)).view(*shape, 4)
    labels = torch.arange(torch.Size(shape).numel()).view(shape) % 4
    loss = Softmax()
    with Card():
        there = scores.to(card), labels.to(card)
        found = loss.values(*there).cpu(), loss.gradient(*there).cpu()
    torch.testing.assert_close(found[0], loss.values(scores, labels))
    torch.testing.assert_close(found[1], loss.gradient(scores, labels))


@pytest.mark.parametrize("loss", [Softmax(), Logistic()], ids=["softmax", "logistic"])
def test_second_derivatives(card: torch.device, loss: PointLoss) -> None:
    several = isinstance(loss, Softmax)
    model = Linear(inputs=4, outputs=3 if several else 1)
    features = torch.sin(torch.arange(40.0, dtype=torch.float64)).view(2, 5, 4)
    labels = torch.arange(10).view(2, 5) % 3 if several else torch.sign(features[..., 0])
    weights = torch.linspace(0.5, 2, 10, dtype=torch.float64).view(2, 5)
    theta = torch.cos(torch.arange(2.0 * model.dim, dtype=torch.float64)).view(2, -1)
    expected = LocalLoss.build(model, loss, features, labels, weights=weights, nu=0.1)
    with Card():
        given = (features.to(card), labels.to(card))
        own = LocalLoss.build(model, loss, *given, weights=weights.to(card), nu=0.1)
        found = own.hessian(theta.to(card)).cpu()
    torch.testing.assert_close(found, expected.hessian(theta), rtol=1e-12, atol=1e-13)


def test_a_copy_on_a_card_is_made_when_either_is_written_to(card: torch.device) -> None:
    with Card():
        first = torch.arange(6.0).to(card)
        array = to_array(first[:4].view(2, 2))
        second, third = to_tensor(array), to_tensor(array)
        first += 10
        second[0] *= 3
        found = [one.cpu().flatten().tolist() for one in (first, second, third, to_tensor(array))]
    assert found[0] == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]
    assert found[1] == [0.0, 3.0, 2.0, 3.0]
    assert found[2] == found[3] == [0.0, 1.0, 2.0, 3.0]
