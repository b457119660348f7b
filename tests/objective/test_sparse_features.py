"""Products with features without their zeros, and the test set's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfl_flower.objective.models import Linear
from pfl_flower.objective.shared_points import SharedPoints
from pfl_flower.objective.sparse_features import Compressed
from pfl_flower.objective.two_layer import TwoLayer
from pfl_flower.support.threads import each, thread_limit
from tests.support import problems


def sparse(points: int, inputs: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return features of which one in ten is not zero, in one point and one feature none."""
    draw = problems.generator(3)
    features = problems.normal(points, inputs, seed=draw).to(dtype)
    features[torch.rand(points, inputs, generator=draw) > 0.1] = 0.0
    features[1], features[:, 2] = 0.0, 0.0
    return features


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 16, 17, 33])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_products_are_those_of_all_features(classes: int, dtype: torch.dtype, rtol: float) -> None:
    features, draw = sparse(60, 40, dtype), problems.generator(4)
    kept = Compressed(features)
    assert len(kept.rows[2]) == int(torch.count_nonzero(features))
    weights = problems.normal(classes, 40, seed=draw).to(dtype)
    slopes = problems.normal(60, classes, seed=draw).to(dtype)
    torch.testing.assert_close(kept.scores(weights), features @ weights.T, rtol=rtol, atol=rtol)
    torch.testing.assert_close(kept.pull_back(slopes), slopes.T @ features, rtol=rtol, atol=rtol)
    # As scores lie, and as views into a larger matrix.
    lying = slopes.T.contiguous().T
    assert torch.equal(kept.pull_back(lying), kept.pull_back(slopes))
    wider = torch.cat([weights, weights], dim=1)[:, 40:]
    assert torch.equal(kept.scores(wider), kept.scores(weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_numbers_are_summed_exactly(dtype: torch.dtype) -> None:
    """Rows of 0 to 12 numbers: none, a few, and whole turns of the sums with all remainders."""
    draw = problems.generator(7)
    features = torch.randint(1, 9, (13, 12), generator=draw).to(dtype)
    features[torch.arange(12)[None] >= torch.arange(13)[:, None]] = 0.0
    features = features[:, torch.randperm(12, generator=draw)]
    weights = torch.randint(-9, 9, (10, 12), generator=draw).to(dtype)
    slopes = torch.randint(-9, 9, (13, 10), generator=draw).to(dtype)
    kept = Compressed(features)
    assert (kept.rows[0].diff() == torch.arange(13)).all()
    assert torch.equal(kept.scores(weights), features @ weights.T)
    assert torch.equal(kept.pull_back(slopes), slopes.T @ features)


@pytest.mark.parametrize("shape", [(0, 4), (3, 4), (1, 1)])
def test_nothing_but_zeros(shape: tuple[int, int]) -> None:
    kept = Compressed(torch.zeros(shape))
    assert torch.equal(kept.scores(torch.ones(2, shape[1])), torch.zeros(shape[0], 2))
    assert torch.equal(kept.pull_back(torch.ones(shape[0], 2)), torch.zeros(2, shape[1]))


def test_a_points_bits_depend_on_no_other_and_on_no_thread() -> None:
    features = sparse(60, 40, torch.float32)
    weights = problems.normal(10, 40, seed=problems.generator(4)).float()
    whole = Compressed(features).scores(weights)
    parts = [(Compressed(features[first : first + 7]),) for first in range(0, 60, 7)]
    with thread_limit(3):
        found = each(lambda part: part.scores(weights), parts)
    assert torch.equal(torch.cat(found), whole)


@pytest.mark.parametrize(
    ("operand", "said"),
    [
        (torch.ones(2, 41), r"\(2, 41\) of torch.float32: expected \(c, 40\)"),
        (torch.ones(2, 40, dtype=torch.float64), "expected .* of torch.float32"),
        (torch.ones(2, 40, requires_grad=True), "derivatives"),
    ],
)
def test_what_would_be_misread_is_refused(operand: Tensor, said: str) -> None:
    """By both products: of 40 points with 40 features."""
    kept = Compressed(sparse(40, 40, torch.float32))
    with pytest.raises(ValueError, match=said):
        kept.scores(operand)
    with pytest.raises(ValueError, match=said):
        kept.pull_back(operand.T)


@pytest.mark.parametrize(
    ("outputs", "share"), [(1, 0.15), (2, 0.3), (3, 0.45), (4, 0.55), (16, 0.55), (17, 0.4)]
)
@pytest.mark.parametrize(("more", "expected"), [(-0.01, True), (0.01, False)])
def test_when_it_pays(outputs: int, share: float, more: float, expected: bool) -> None:
    features = torch.zeros(10_000)
    features[: int((share + more) * 10_000)] = 1.0
    assert Compressed(features.view(100, 100)).pays(outputs) is expected


def test_other_types_are_left_alone() -> None:
    assert not Compressed(torch.zeros(100, 100, dtype=torch.float16)).pays(10)
    assert not Compressed(torch.zeros(100, 100, device="meta")).pays(10)


@pytest.mark.parametrize("model", [Linear(40, 10), Linear(40, 1), TwoLayer(40, 3, hidden=5)])
def test_scores_of_the_test_set(model: Linear | TwoLayer) -> None:
    features, draw = sparse(60, 40), problems.generator(4)
    theta = problems.normal(3, model.dim, seed=draw)
    points = SharedPoints(features, torch.zeros(60, dtype=torch.int64))
    assert points._compressed.pays(model.outputs)
    expected = torch.cat([model.scores(one[None], features) for one in theta])
    torch.testing.assert_close(points.scores(model, theta), expected, rtol=1e-12, atol=1e-12)
