"""Products with features without their zeros, and the test set's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfl_flower.objective import sparse_features
from pfl_flower.objective.models import Linear, TwoLayer
from pfl_flower.objective.shared_points import SharedPoints
from pfl_flower.objective.sparse_features import Compressed
from tests.support import problems


def sparse(points: int, inputs: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return features of which one in ten is not zero, in one point and one feature none."""
    draw = problems.generator(3)
    features = problems.normal(points, inputs, seed=draw).to(dtype)
    features[torch.rand(points, inputs, generator=draw) > 0.1] = 0.0
    features[1], features[:, 2] = 0.0, 0.0
    return features


@pytest.mark.parametrize("classes", [1, 2, 10, 33])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_products_are_those_of_all_features(classes: int, dtype: torch.dtype, rtol: float) -> None:
    features, draw = sparse(60, 40, dtype), problems.generator(4)
    kept = Compressed.of(features)
    assert kept is not None
    assert kept.rows.values().numel() == int(torch.count_nonzero(features))
    weights = problems.normal(classes, 40, seed=draw).to(dtype)
    slopes = problems.normal(60, classes, seed=draw).to(dtype)
    torch.testing.assert_close(kept.scores(weights), features @ weights.T, rtol=rtol, atol=rtol)
    torch.testing.assert_close(kept.pull_back(slopes), slopes.T @ features, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("share", "expected"), [(0.24, True), (0.26, False)])
def test_pays_up_to_a_quarter(share: float, expected: bool) -> None:
    features = torch.zeros(10_000)
    features[: int(share * 10_000)] = 1.0
    assert sparse_features.pays(features.view(100, 100)) is expected


def test_nothing_is_compressed_without_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert Compressed.of(sparse(60, 40)) is None


@pytest.mark.parametrize("model", [Linear(40, 10), Linear(40, 1), TwoLayer(40, 3, hidden=5)])
def test_scores_of_the_test_set(model: Linear | TwoLayer) -> None:
    features, draw = sparse(60, 40), problems.generator(4)
    theta = problems.normal(3, model.dim, seed=draw)
    points = SharedPoints(features, torch.zeros(60, dtype=torch.int64))
    assert points._compressed is not None
    expected = torch.cat([model.scores(one[None], features) for one in theta])
    torch.testing.assert_close(points.scores(model, theta), expected, rtol=1e-12, atol=1e-12)
