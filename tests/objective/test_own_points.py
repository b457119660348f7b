"""Own test sets of any sizes, judged together as each would be alone."""

from __future__ import annotations

import pytest
import torch

from pfl_flower.objective import own_points
from pfl_flower.objective.models import Linear, accuracy
from pfl_flower.objective.own_points import OwnPoints
from pfl_flower.objective.two_layer import TwoLayer
from pfl_flower.objective.user_data import UserData

SIZES = (3, 1, 17, 3, 40, 18)


def users(outputs: int) -> list[UserData]:
    draw = torch.Generator().manual_seed(3)
    made = []
    for size in SIZES:
        features = torch.randn((size, 4), generator=draw, dtype=torch.float64)
        labels = torch.randint(3, (size,), generator=draw)
        if outputs == 1:
            labels = torch.randn(size, generator=draw, dtype=torch.float64)
        made.append(UserData(features, labels))
    return made


@pytest.mark.parametrize("most", [1, 50, 2**21])
@pytest.mark.parametrize("model", [Linear(4, 3), TwoLayer(4, 3, hidden=5)])
def test_accuracies_are_each_users_own(
    model: Linear | TwoLayer, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_points, "SCORES_AT_ONCE", most)
    sets = users(3)
    theta = model.initial(len(sets), torch.Generator().manual_seed(4), torch.float64)
    theta += torch.randn(theta.shape, generator=torch.Generator().manual_seed(5)).double()
    found = OwnPoints(sets, torch.float64, torch.device("cpu")).accuracy(model, theta)
    alone = [
        float(accuracy(model.scores(theta[n : n + 1], one.features[None]), one.labels[None])[0])
        for n, one in enumerate(sets)
    ]
    assert found.tolist() == alone
    assert len(set(alone)) > 3


def test_squared_errors_are_means_over_each_users_points() -> None:
    sets, model = users(1), Linear(4, 1)
    theta = torch.randn((len(sets), 4), generator=torch.Generator().manual_seed(6)).double()
    points = OwnPoints(sets, torch.float64, torch.device("cpu"))
    found = points.squared_error(model, theta)
    for n, one in enumerate(sets):
        error = ((one.features @ theta[n] - one.labels) ** 2).mean()
        assert float(found[n]) == pytest.approx(float(error), rel=1e-12)
    assert points.sizes == SIZES
