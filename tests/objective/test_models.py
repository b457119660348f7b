from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pfl_flower.objective.models import Linear, Model, accuracy, augment, predict
from pfl_flower.objective.two_layer import TwoLayer
from tests.support import problems

MODELS = [
    pytest.param(Linear(inputs=5, outputs=3), id="linear"),
    pytest.param(Linear(inputs=5, outputs=1), id="linear-binary"),
    pytest.param(TwoLayer(inputs=5, outputs=3, hidden=4), id="two-layer"),
    pytest.param(TwoLayer(inputs=5, outputs=1, hidden=7), id="two-layer-binary"),
]


def module(model: Model, theta: Tensor) -> nn.Module:
    """The model of one user as torch layers with weights and biases copied from theta."""

    def layer(weight: Tensor) -> nn.Linear:
        copy = nn.Linear(weight.shape[1] - 1, weight.shape[0], dtype=torch.float64)
        copy.weight.data, copy.bias.data = weight[:, :-1].clone(), weight[:, -1].clone()
        return copy

    if isinstance(model, Linear):
        return layer(theta.reshape(model.outputs, model.inputs))
    assert isinstance(model, TwoLayer)
    size = model.hidden * model.inputs
    first = theta[:size].reshape(model.hidden, model.inputs)
    second = theta[size:].reshape(model.outputs, model.hidden + 1)
    return nn.Sequential(layer(first), nn.ReLU(), layer(second))


@pytest.mark.parametrize("model", MODELS)
class TestModel:
    def test_scores_equal_a_module(self, model: Model) -> None:
        source = problems.generator(1)
        raw = problems.normal(3, 6, 4, seed=source)
        theta = problems.normal(3, model.dim, seed=source)
        scores = model.scores(theta, augment(raw))
        assert scores.shape == (3, 6, model.outputs)
        for user in range(3):
            expected = module(model, theta[user])(raw[user])
            torch.testing.assert_close(scores[user], expected.detach(), rtol=1e-12, atol=1e-12)

    def test_dim_counts_the_modules_parameters(self, model: Model) -> None:
        layers = module(model, torch.zeros(model.dim))
        assert model.dim == sum(parameter.numel() for parameter in layers.parameters())

    def test_shared_features_equal_own_features(self, model: Model) -> None:
        source = problems.generator(2)
        features = augment(problems.normal(6, 4, seed=source))
        theta = problems.normal(3, model.dim, seed=source)
        shared = model.scores(theta, features)
        own = model.scores(theta, features.expand(3, 6, 5).clone())
        torch.testing.assert_close(shared, own, rtol=1e-13, atol=1e-13)

    def test_initial(self, model: Model) -> None:
        theta = model.initial(3, problems.generator(3), torch.float64)
        assert theta.shape == (3, model.dim)
        assert theta.dtype == torch.float64
        assert torch.equal(theta, theta[:1].expand(3, -1))
        assert torch.equal(theta, model.initial(3, problems.generator(3), torch.float64))
        single = model.initial(1, problems.generator(3), torch.float32)
        assert torch.equal(single, theta[:1].float())
        theta[0] += 1.0
        assert not torch.equal(theta[0], theta[1])


def test_linear_starts_at_zero() -> None:
    assert torch.count_nonzero(Linear(5, 3).initial(2, problems.generator(4), torch.float64)) == 0


def test_two_layer_starts_uniform_in_its_bounds() -> None:
    model = TwoLayer(inputs=10, outputs=100, hidden=36)
    first, second = model.layers(model.initial(1, problems.generator(5), torch.float64))
    for weights, bound in [(first, 1 / 3), (second, 1 / 6)]:
        assert 0.99 * bound < weights.abs().max() <= bound
        assert weights.min() < -0.9 * bound and weights.max() > 0.9 * bound
        assert abs(weights.mean()) < 0.1 * bound
    other = model.initial(1, problems.generator(6), torch.float64)
    assert not torch.equal(other[:, : first.numel()], first.reshape(1, -1))


def test_augment_appends_ones() -> None:
    features = torch.arange(6.0).reshape(1, 2, 3)
    expected = [[[0.0, 1.0, 2.0, 1.0], [3.0, 4.0, 5.0, 1.0]]]
    assert augment(features).tolist() == expected


@pytest.mark.parametrize(
    ("scores", "labels", "classes", "hit"),
    [
        ([[[2.0], [-1.0], [0.0], [-0.5]]], [[1, 1, 1, -1]], [[1, -1, 1, -1]], [0.75]),
        ([[[0.1, 0.9], [2.0, 1.0]], [[5.0, 0.0], [0.0, 5.0]]], [[1, 0], [1, 0]], None, [1.0, 0.0]),
        ([[[0.0, 1.0, 2.0], [3.0, 1.0, 2.0]]], [[2, 1]], [[2, 0]], [0.5]),
    ],
)
def test_predict_and_accuracy(
    scores: list[list[list[float]]],
    labels: list[list[int]],
    classes: list[list[int]] | None,
    hit: list[float],
) -> None:
    if classes is not None:
        assert predict(torch.tensor(scores)).tolist() == classes
    assert accuracy(torch.tensor(scores), torch.tensor(labels)).tolist() == hit


def test_accuracy_on_shared_labels() -> None:
    scores = torch.tensor([[[1.0], [-1.0]], [[1.0], [1.0]]])
    assert accuracy(scores, torch.tensor([1.0, -1.0])).tolist() == [1.0, 0.5]
