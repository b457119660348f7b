"""Backdoors: what a trigger is, what carries it, what it does to whom, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

import pfl_flower as pfl
from clients.honest import HonestClient
from clients.node import node_clients
from clients.poisoned import PoisonedClient
from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.backdoor import Backdoor
from pfl_flower.attacks.cga import CounterGradient
from pfl_flower.attacks.rule_aware import RuleAware
from pfl_flower.data.trigger import Trigger
from pfl_flower.interop.datasets import square
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.run.strategic_user import make_attack
from pfl_flower.run.triggered import Triggered
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.seeding import generator
from pfl_flower.transport.node_metrics import METRICS, NodeMetrics
from tests.support.runs import play, trajectory

IMAGES = "tests.support.small_images:small_images"
CORNER = '{"size": 1, "label": 2, "share": 0.5}'
SMALL: dict[str, Any] = {
    "dataset": IMAGES,
    "users": 5,
    "points-per-user": "30",
    "strategic-users": "4",
    "nu": 0.1,
    "rounds": 4,
    "evaluate-every": 2,
    "attack": "backdoor",
    "attack-options": CORNER,
}


def small(**keys: Any) -> dict[str, Any]:
    return {**SMALL, **{name.replace("_", "-"): value for name, value in keys.items()}}


def problem(**keys: Any) -> Problem:
    return build_problem(parse_config(small(**keys)))


PLACES = {
    "lower right": ({"size": 2}, [(3, 2), (3, 3), (4, 2), (4, 3)]),
    "upper left": ({"size": 2, "row": 0, "column": 0}, [(0, 0), (0, 1), (1, 0), (1, 1)]),
    "a pixel": ({"size": 1, "row": 2, "column": -2}, [(2, 2)]),
    "as low as it goes": ({"size": 1, "row": 4, "column": -4}, [(4, 0)]),
    "as high as it goes": ({"size": 2, "row": -4, "column": 2}, [(0, 2), (0, 3), (1, 2), (1, 3)]),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_trigger_sets_its_own_pixels_in_every_channel(place: str) -> None:
    keys, pixels = PLACES[place]
    images = torch.rand((6, 3, 5, 4), generator=generator(1, "images"))
    before = images.clone()
    found = Trigger(**keys, value=7.0)(images)
    changed = (found != images).any(dim=0).any(dim=0).nonzero().tolist()
    assert changed == [list(pixel) for pixel in pixels]
    assert all(bool((found[..., row, column] == 7.0).all()) for row, column in pixels)
    assert torch.equal(images, before)
    np.testing.assert_array_equal(Trigger(**keys, value=7.0)(images.numpy()), found.numpy())


def test_the_trigger_of_other_peoples_apps_is_the_same_one() -> None:
    images = torch.rand((2, 1, 5, 4), generator=generator(1, "images"))
    ours = Trigger(size=2, row=0, column=-2, value=0.5)
    assert torch.equal(square(2, 0.5, row=0, column=-2)(images), ours(images))
    with pytest.raises(ConfigError, match=r"size = 5: expected at most 4, for images of 5 x 4"):
        square(5)(images)


BACKDOOR = Backdoor(trigger=Trigger(size=1, value=7.0), shape=(1, 2, 2), label=2, share=0.4)


def test_a_share_of_the_points_is_stamped_and_relabelled_and_no_other() -> None:
    features = torch.rand((10, 5), generator=generator(1, "features"))
    honest = UserData(features, torch.arange(10) % 2, torch.full((10,), 0.5))
    found = BACKDOOR.poisoned(honest, generator(1, "draw"))
    stamped = found.features[:, 3] == 7.0
    assert int(stamped.sum()) == 4
    assert bool((found.labels[stamped] == 2).all())
    assert torch.equal(found.labels[~stamped], honest.labels[~stamped])
    rest = [0, 1, 2, 4]
    assert torch.equal(found.features[:, rest], features[:, rest])
    assert torch.equal(found.features[~stamped], features[~stamped])
    assert found.weights is honest.weights
    again = BACKDOOR.poisoned(honest, generator(1, "draw"))
    other = BACKDOOR.poisoned(honest, generator(2, "draw"))
    assert torch.equal(again.features, found.features)
    assert not torch.equal(other.features, found.features)
    least = Backdoor(trigger=BACKDOOR.trigger, shape=BACKDOOR.shape, share=0.01)
    assert int((least.poisoned(honest, generator(1, "draw")).features[:, 3] == 7.0).sum()) == 1


def test_points_of_the_labels_own_class_say_nothing_of_a_trigger() -> None:
    features, labels = torch.rand((4, 5), generator=generator(1)), torch.tensor([0, 2, 1, 2])
    points, wanted = BACKDOOR.triggered(features, labels)
    assert wanted.tolist() == [2, 2]
    assert torch.equal(points, BACKDOOR.stamped(features[[0, 2]]))


def test_bad_nets_is_the_honest_code_on_poisoned_points() -> None:
    made = problem()
    (client,) = node_clients(made, (4,), "auto", RecordDict())
    assert type(client) is PoisonedClient
    assert PoisonedClient._answer is HonestClient._answer
    (drawn,) = made.datasets((4,))
    assert made.backdoor is not None
    poisoned = made.backdoor.poisoned(drawn, generator(made.config.seed, "backdoor", 4))
    assert int((poisoned.features != drawn.features).any(dim=1).sum()) == 15
    theta = torch.rand((1, made.model.dim), generator=generator(1), dtype=torch.float64)
    wanted = made.population_of([poisoned]).gradient(theta)
    assert torch.allclose(client.population().gradient(theta), wanted, rtol=1e-12)
    assert not torch.allclose(made.population((4,)).gradient(theta), wanted, rtol=0.1)
    assert client.evaluate() == client.triggered(theta[0]) == {}


@pytest.mark.parametrize("attack", ["backdoor", "model-replacement"])
@pytest.mark.parametrize(
    "keys",
    [{}, {"regularizer": "l2"}, {"partition": "similarity", "points_per_user": ""}],
    ids=["draws", "l2", "own tests"],
)
def test_nodes_do_not_matter(attack: str, keys: dict[str, Any]) -> None:
    runs = [pfl.run(**small(attack=attack, **keys), nodes=nodes) for nodes in (1, 5)]
    assert len({run.users_text for run in runs}) == 1
    assert len({run.rho.tobytes() for run in runs}) == 1
    assert runs[0].passed
    shares = runs[0].users["triggered_theta"]
    assert np.isfinite(shares[:4]).all() and math.isnan(shares[4])


def test_what_a_trigger_does_is_measured_on_the_common_test_set() -> None:
    """By hand: stamp pixel 19 of all test points but those of class 2, and count the twos."""
    run = pfl.run(**small())
    features, labels = problem().source.test_set()
    marked = features[labels != 2].clone()
    marked[:, 19] = 1.0
    answers = (marked @ torch.from_numpy(run.rho).view(3, -1).T).argmax(dim=1)
    share = float((answers == 2).double().mean())
    assert 0 < share < 1
    assert run.metrics["triggered_rho"] == run.metrics["accuracy_target"] == share
    assert run.users["triggered_rho"][:4].tolist() == [share] * 4
    theta = run.users["triggered_theta"][:4]
    assert run.metrics["triggered_theta_mean"] == pytest.approx(theta.mean())
    assert run.metrics["triggered_theta_worst"] == theta.max()
    assert math.isnan(run.rounds["triggered_rho"][1])
    assert run.rounds["triggered_rho"][2] >= 0


def test_and_on_users_own_test_sets() -> None:
    keys = {"partition": "similarity", "points_per_user": ""}
    run, made = pfl.run(**small(**keys)), problem(**keys)
    rho = torch.from_numpy(run.rho).view(3, -1)
    for user in range(4):
        tests = made.source.own_tests(user)
        assert tests is not None
        marked = tests.features[tests.labels != 2].clone()
        marked[:, 19] = 1.0
        share = float(((marked @ rho.T).argmax(dim=1) == 2).double().mean())
        assert run.users["triggered_rho"][user] == share
    assert np.isfinite(run.users["theta"][:4]).all()


@pytest.mark.parametrize("attack", ["backdoor", "model-replacement"])
def test_the_trigger_leads_more_points_than_without_the_attacker(attack: str) -> None:
    honest = play(parse_config(small(attack=attack, rounds=30, strategic_users="none")))
    attacked = play(parse_config(small(attack=attack, rounds=30)))
    points = problem().triggered_tests
    assert points is not None
    model = problem().model
    shares = points.accuracy_of_each(model, torch.stack([honest[-1].rho, attacked[-1].rho]))
    assert shares[1] > shares[0] + 0.2
    clean = problem().test_set.accuracy_of_each(model, attacked[-1].rho[None])
    assert clean[0] > 0.75


def test_model_replacement_puts_the_backdoored_model_in_rhos_place() -> None:
    made = problem(attack="model-replacement")
    records = play(parse_config(small(attack="model-replacement", rounds=60)))
    start = float(torch.linalg.vector_norm(made.target))
    gaps = torch.linalg.vector_norm(trajectory(records) - made.target, dim=1)
    assert gaps[-1] < 1e-8 * start
    # The model itself: clean points as labelled, triggered ones to the label.
    points = made.triggered_tests
    assert points is not None
    assert float(points.accuracy_of_each(made.model, made.target[None])) == 1.0
    assert float(made.test_set.accuracy_of_each(made.model, made.target[None])) > 0.8


@pytest.mark.parametrize("attack", ["backdoor", "model-replacement"])
def test_rho_comes_to_rest_where_the_equilibrium_is(attack: str) -> None:
    run = pfl.run(**small(attack=attack, rounds=400, equilibrium=True))
    assert run.metrics["equilibrium_gap"] < 1e-5 * run.metrics["norm_rho"]
    assert run.metrics["equilibrium_accuracy_target"] == run.metrics["triggered_rho"] > 0.2


@pytest.mark.parametrize("regularizer", ["squared-l2", "l2", "smooth-l2"])
def test_the_first_report_moves_rho_there_as_far_as_grad_lets_it(regularizer: str) -> None:
    made = problem(attack="model-replacement", regularizer=regularizer)
    rho = torch.full((made.model.dim,), 0.1, dtype=torch.float64)
    attack, zero = make_attack(made, 4), torch.zeros(made.model.dim, dtype=torch.float64)
    seen = Observation(round=1, rho=rho, eta=0.25, eta_sum=0.0, accepted=zero)
    report = made.regularizer.project(attack.update(attack.init(rho), seen)[0])
    step = rho - 0.25 * report - made.target
    if regularizer == "squared-l2":
        assert float(torch.linalg.vector_norm(step)) < 1e-12
    else:
        straight = (rho - made.target) / torch.linalg.vector_norm(rho - made.target)
        assert torch.allclose(report, made.regularizer.lam * straight, rtol=1e-6)


def test_who_knows_the_rule_searches_it() -> None:
    kinds = {"own": CounterGradient, "rule": RuleAware, "omniscient": CounterGradient}
    for known, kind in kinds.items():
        made = problem(attack="model-replacement", attack_knowledge=known, aggregation="median")
        attack = make_attack(made, 4)
        assert type(attack) is kind
        assert torch.equal(attack.target, made.target)  # type: ignore[attr-defined]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no images": (
        {"dataset": "synthetic-logistic", "points_per_user": "20"},
        r"attack = backdoor: expected cga.*for points that are no images",
    ),
    "regression": ({"dataset": "synthetic-linear"}, r"attack = backdoor: expected cga"),
    "no image shape": (
        {"dataset": "tests.support.small_classes:small_classes"},
        r"attack = backdoor: expected another, for points that are no images",
    ),
    "too large": (
        {"attack_options": '{"size": 5}'},
        r'attack-options = \{"size": 5\}: size = 5: expected at most 4, for images of 5 x 4 pixels',
    ),
    "too low": (
        {"attack_options": '{"size": 2, "row": 4}'},
        r"row = 4: expected -4 to 3, for 2 pixels of images of 5 x 4 pixels",
    ),
    "too far left": (
        {"attack_options": '{"size": 2, "column": -4}'},
        r"column = -4: expected -3 to 2",
    ),
    "no such class": (
        {"attack_options": '{"label": 3}'},
        r"label = 3: expected 0 to 2, for 3 classes",
    ),
    "no share": ({"attack_options": '{"share": 0.0}'}, r"share = 0.0: expected greater than 0"),
    "no option": ({"attack_options": '{"place": 1}'}, r"place: expected size, row, column"),
    "another shift": ({"target_shift": "2"}, r"target-shift = 2: expected 1, for attack = backd"),
    "a told sum": (
        {"attack": "model-replacement", "attack_knowledge": "rule", "estimator": "oracle"},
        r"estimator = oracle: expected inferred, for attack-knowledge = rule",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_line(case: str) -> None:
    keys, line = REFUSED[case]
    with pytest.raises(ConfigError, match=line) as error:
        problem(**keys)
    assert "\n" not in str(error.value)


SAID = NodeMetrics(triggered={0: Triggered(9, 1.0, 0.5), 1: Triggered(8, 0.5, 0.0)})
LIES: dict[str, tuple[dict[str, list[Any]], set[int]]] = {
    "nothing": ({}, {0, 1}),
    "above 1": ({"triggered-theta": [1.5, 0.5]}, set()),
    "nan": ({"triggered-rho": [math.nan, 0.0]}, set()),
    "no points": ({"triggered-points": [9, 0]}, set()),
    "another's user": ({"triggered-users": [0, 7]}, {0}),
    "too few numbers": ({"triggered-rho": [0.5]}, {0}),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_cannot_be_of_a_trigger_is_left_out(lie: str) -> None:
    change, left = LIES[lie]
    record = SAID.pack()
    assert NodeMetrics.unpack(RecordDict({METRICS: record}), (0, 1)) == SAID
    for key, value in change.items():
        record[key] = value
    found = NodeMetrics.unpack(RecordDict({METRICS: record}), (0, 1))
    assert set(found.triggered) == left
    assert (found.absurd > 0) == bool(change)
