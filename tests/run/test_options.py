"""Options and keys of a run reach the parameters that they say, and those alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_flower.aggregation.combination import configured_rule
from pfl_flower.aggregation.rules import (
    centred_clipping,
    geometric_median,
    mixed,
    multi_krum,
    trimmed_mean,
)
from pfl_flower.attacks.poisoning.table import EVERY_LOSS
from pfl_flower.data.sources import Source
from pfl_flower.data.spec import DataSpec
from pfl_flower.data.synthetic import Synthetic
from pfl_flower.objective.losses import LOSSES
from pfl_flower.objective.two_layer import TwoLayer
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.attack_plans import fabricate
from pfl_flower.run.problem import build_problem
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.seeding import generator
from tests.support.runs import configure


def own_rule(rows: Tensor, *, radius: float = 3.0, selected: int = 2, tolerance: int = 7) -> Tensor:
    """A rule of the user's own, some of whose parameters are called like another's."""
    return rows[0] * radius + rows[1] * selected + rows[2] * tolerance


OWN = f"{__name__}:own_rule"
RULES: list[tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = [
    (
        {"aggregation": "multi-krum", "krum_selected": 2},
        partial(multi_krum, tolerance=1, selected=2),
    ),
    ({"aggregation": "multi-krum"}, partial(multi_krum, tolerance=1, selected=0)),
    (
        {"aggregation": "centred-clipping", "clipping_radius": 0.2},
        partial(centred_clipping, radius=0.2),
    ),
    (
        {"aggregation": "centred-clipping", "aggregation_options": {"clippings": 1}},
        partial(centred_clipping, clippings=1),
    ),
    (
        {"aggregation": "geometric-median", "aggregation_options": {"smoothing": 2.0}},
        partial(geometric_median, smoothing=2.0),
    ),
    (
        {"aggregation": "geometric-median", "aggregation_options": {"steps": 1}},
        partial(geometric_median, steps=1),
    ),
    (
        {"aggregation": "trimmed-mean", "aggregation_mixing": True, "aggregation_tolerance": 2},
        lambda rows: trimmed_mean(mixed(rows, tolerance=2), tolerance=2),
    ),
    ({"aggregation": OWN, "aggregation_tolerance": 2}, partial(own_rule, tolerance=2)),
    (
        {"aggregation": OWN, "aggregation_options": {"radius": 5.0, "selected": 4}},
        partial(own_rule, radius=5.0, selected=4, tolerance=1),
    ),
]


@pytest.mark.parametrize(("keys", "expected"), RULES, ids=[str(keys)[1:60] for keys, _ in RULES])
def test_a_rule_gets_what_the_run_says(
    keys: dict[str, Any], expected: Callable[[Tensor], Tensor]
) -> None:
    rows = torch.randn((5, 4), generator=generator(1, "rows"), dtype=torch.float64)
    assert torch.equal(configured_rule(configure(**keys))(rows), expected(rows))
    plain = configured_rule(configure(aggregation=keys["aggregation"]))(rows)
    assert torch.equal(plain, expected(rows)) == (len(keys) == 1)


BOX: dict[str, Any] = {"poisoning_box": True}
POISONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("indifference", {"sweeps": 1}, {"sweeps": 500}),
    ("matching", {"rounds": 1, "gap": 1e-4}, {"gap": 1e-4}),
    ("matching", {"gap": 0.9}, {"gap": 0.02, "rounds": 40}),
]
"""Options that change the data, and others; what is not said is as it has been."""


@pytest.mark.parametrize(("method", "options", "others"), POISONS)
def test_options_change_the_data_that_are_made(
    method: str, options: dict[str, Any], others: dict[str, Any]
) -> None:
    made = [
        fabricate(
            build_problem(
                configure(attack="data", poisoning=method, poisoning_options=given, **BOX)
            ),
            4,
        )
        for given in (options, others, {})
    ]
    weights = [float((one.features.T @ one.weights).sum()) for one in made]
    assert weights[0] != weights[1]
    assert (weights[1] == weights[2]) == (others != {"gap": 1e-4})


def test_options_of_made_data() -> None:
    source = build_problem(
        configure(dataset="synthetic-linear", dataset_options={"spread": 0.0, "noise": 0.0})
    ).source
    assert isinstance(source, Synthetic)
    assert torch.equal(source.preferred(1), source.common)
    data = source.draw(1, 5, 1)
    assert torch.allclose(data.features @ source.common, data.labels, rtol=1e-12)
    usual = build_problem(configure(dataset="synthetic-logistic")).source
    near = build_problem(
        configure(dataset="synthetic-logistic", dataset_options={"spread": 0.1})
    ).source
    assert isinstance(usual, Synthetic) and isinstance(near, Synthetic)
    away = [one.preferred(1) - one.common for one in (usual, near)]
    assert torch.allclose(away[0], 3 * away[1])


def test_poisonings_know_every_loss() -> None:
    assert set(EVERY_LOSS) == set(LOSSES)


class Own(Source):
    """Data of the user's own whose loss no row of the table knows."""

    def __init__(self, spec: DataSpec, *, loss: str = "least-squares") -> None:
        known = "logistic" if loss == "logistic" else "least-squares"
        self.made = Synthetic(known, 4, spec.seed)
        self.loss, self.inputs, self.outputs = loss, 4, 1

    def draw(self, user: int, points: int, seed: int) -> UserData:
        return self.made.draw(user, points, seed)

    def test_set(self) -> tuple[Tensor, Tensor]:
        return self.made.test_set()

    def training_set(self) -> tuple[Tensor, Tensor]:
        return self.made.training_set()


OWN_MODEL = f"{__name__}:own_model"
OWN_DATA = {"dataset": f"{__name__}:Own"}


def test_data_of_ones_own_are_poisoned_by_what_serves_their_loss() -> None:
    made = fabricate(build_problem(configure(attack="data", **OWN_DATA)), 4)
    assert made.method == "single point"
    with pytest.raises(ConfigError, match=r"^poisoning = matching: expected auto, single-point"):
        build_problem(configure(attack="data", poisoning="matching", **OWN_DATA))
    with pytest.raises(ConfigError, match=r"^dataset = .*: expected a source with a loss among"):
        build_problem(configure(**OWN_DATA, dataset_options={"loss": "hinge"}))


@pytest.mark.parametrize("loss", ["least-squares", "logistic"])
def test_the_target_of_data_with_one_score_answers_the_opposite(loss: str) -> None:
    problem = build_problem(configure(**OWN_DATA, dataset_options={"loss": loss}))
    assert isinstance(problem.source, Own)
    common = problem.source.made.common
    assert torch.allclose(problem.target, -problem.honest_model, rtol=1e-6)
    assert float(torch.nn.functional.cosine_similarity(problem.target, -common, dim=0)) > 0.99


def own_model(inputs: int, outputs: int) -> TwoLayer:
    """A model of the user's own."""
    return TwoLayer(inputs, outputs, hidden=10)


def test_a_target_of_code_of_ones_own_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code may be another one tomorrow, under the same name."""
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path))
    for keys, kept in (({"model": "two-layer", "hidden": 9}, 1), ({"model": OWN_MODEL}, 1)):
        problem = build_problem(configure(dataset="digits", local_solver="adam", **keys))
        assert problem.target.shape == (problem.model.dim,)
        assert len(list(tmp_path.rglob("*.npy"))) == kept
