from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.tables import TABLES
from pfl_flower.support.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent

BAD = [
    ({"foo": 1}, "foo = 1: unknown key; the keys are aggregation, "),
    ({"lambda": 1}, "lambda = 1: unknown key; did you mean lam?"),
    ({"users_number": 1}, "users_number = 1: unknown key; "),
    ({"server-learning-rate": 1}, "server-learning-rate = 1: unknown key; did you mean server-"),
    ({"lam": 1, "nu": -1.0}, "nu = -1.0: expected greater than or equal to 0"),
    ({"batch-size": 1, "batch_size": 2}, "batch-size: expected one value, and batch_size is giv"),
    ({"points-per-user": 1e3}, "points-per-user = 1000.0: expected sizes such as 60000,10"),
    ({"points-per-user": True}, "points-per-user = True: expected sizes such as 60000,10"),
    ({"strategic-users": 1.5}, "strategic-users = 1.5: expected ids such as 3,7-9, all, or none"),
    ({"target-shift": 1.5}, "target-shift = 1.5: expected shifts such as 1,2"),
    ({"dataset": 5}, "dataset = 5: expected text"),
    ({"attack-strength": "big"}, "attack-strength = 'big': expected a number, or empty"),
    ({"attack-strength": float("inf")}, "attack-strength = inf: expected a number, or empty"),
    ({"clipping-radius": -1.0}, "clipping-radius = -1.0: expected a number of at least 0, or em"),
    ({"local-lr-floor": -1.0}, "local-lr-floor = -1.0: expected a number of at least 0, or empty"),
    ({"aggregation-tolerance": 1.5}, "aggregation-tolerance = 1.5: expected a whole number of"),
    ({"lam": -1}, "lam = -1: expected greater than 0"),
    ({"lam": "big"}, "lam = 'big': expected a valid number"),
    ({"lam": float("nan")}, "lam = nan: expected"),
    ({"lam": True}, "lam = True: expected a valid number"),
    ({"rounds": 0}, "rounds = 0: expected greater than or equal to 1"),
    ({"rounds": 1.5}, "rounds = 1.5: expected a valid integer"),
    ({"rounds": "ten"}, "rounds = 'ten': expected a valid integer"),
    ({"dataset": "cifar"}, "dataset = cifar: expected digits, mnist"),
    ({"dataset": "imagefolder:"}, "dataset = imagefolder:: expected digits, mnist"),
    (
        {"dataset": "cifar10-embeddings", "attack": "data", "poisoning-box": True},
        "poisoning-box = True: expected false, for embeddings",
    ),
    ({"server-lr": "fast"}, "server-lr = 'fast': expected auto or a positive number"),
    ({"server-lr": 0.0}, "server-lr = 0.0: expected auto or a positive number"),
    ({"strategic-users": 11}, "strategic-users = 11: expected ids 0 to 10"),
    ({"strategic-users": "x"}, "strategic-users = x: expected ids"),
    ({"points-per-user": "0"}, "points-per-user = 0: expected sizes"),
    ({"regularizer": "l3"}, "regularizer = l3: expected squared-l2, l2, smooth-l2"),
    ({"attack": "magic"}, "attack = magic: expected cga"),
    ({"name": "a/b"}, "name = 'a/b': expected letters"),
    ({"dtype": "float32"}, "dtype = float32: expected float64, for exact solves"),
    ({"model": "two-layer"}, "model = two-layer: expected linear, for exact solves"),
    ({"batch-size": 8}, "batch-size = 8: expected 0, for exact solves"),
    ({"update-order": "simultaneous"}, "update-order = simultaneous: expected local-first"),
    ({"target": "negate"}, "target = negate: expected relabel"),
    ({"server-optimizer": "adam"}, "server-lr = auto: expected a number"),
    ({"target-shift": "0"}, "target-shift = 0: expected shifts such as 1,2"),
    (
        {"dataset": "synthetic-linear", "target-shift": 2},
        "target-shift = 2: expected 1, for synthetic data",
    ),
    ({"poisoning": "magic"}, "poisoning = magic: expected auto, single-point"),
    (
        {"attack": "data", "poisoning": "repeated"},
        "poisoning = repeated: expected auto, sampling, indifference, matching, for a softmax",
    ),
    (
        {"attack": "data", "dataset": "synthetic-linear", "poisoning": "matching"},
        "poisoning = matching: expected auto, single-point, sampling, for a least-squares",
    ),
    ({"attack": "data", "reduction": "mean"}, "reduction = mean: expected sum"),
    ({"initialization": "attack-model"}, "initialization = attack-model: expected global"),
    ({"poisoning-weight": 0.0}, "poisoning-weight = 0.0: expected greater than 0"),
    (
        {"attack": "data", "poisoning-box": True, "poisoning-queries": "images"},
        "poisoning-box = True: expected false, for given images",
    ),
    (
        {"aggregation": "mean"},
        "aggregation = mean: expected sum, median, trimmed-mean, geometric-median, krum",
    ),
    (
        {"aggregation": "krum", "aggregation-tolerance": 5},
        "aggregation-tolerance = 5: expected 0 to 4, for 11 users",
    ),
    (
        {"aggregation": "multi-krum", "strategic-users": "6-10"},
        'aggregation-tolerance = "": expected 0 to 4, for 11 users and this aggregation; empty',
    ),
    (
        {"aggregation": "trimmed-mean", "aggregation-tolerance": 6},
        "aggregation-tolerance = 6: expected 0 to 5, for 11 users",
    ),
    (
        {"aggregation-mixing": True, "aggregation-tolerance": 6},
        "aggregation-tolerance = 6: expected 0 to 5, for 11 users",
    ),
    (
        {"aggregation-tolerance": -1},
        "aggregation-tolerance = -1: expected a whole number of at least 0, or empty",
    ),
    (
        {"aggregation": "krum", "users": 4, "strategic-users": "3"},
        "users = 4: expected at least 5, for an aggregation",
    ),
    (
        {"aggregation": "trimmed-mean", "users": 2, "strategic-users": "1"},
        "users = 2: expected at least 3, for an aggregation",
    ),
    ({"krum-selected": 3}, "krum-selected = 3: expected 0, unless aggregation = multi-krum"),
    (
        {"aggregation": "multi-krum", "krum-selected": 11},
        "krum-selected = 11: expected at most 10, for 11 users, of whom 1 may be",
    ),
    (
        {"clipping-radius": 1.0},
        "clipping-radius = 1.0: expected empty, unless aggregation = centred",
    ),
    (
        {"hidden": 16, "model": "my.own:Model", "local-solver": "adam"},
        "hidden = 16: expected 784, unless model = two-layer",
    ),
    (
        {"aggregation": "krum", "aggregation-options": '{"steps": 2}'},
        'aggregation-options = {"steps": 2}: steps: expected no option',
    ),
    (
        {"poisoning": "matching", "poisoning-options": '{"gap": 0}'},
        'poisoning-options = {"gap": 0}: gap = 0: expected greater than 0',
    ),
    ({"model": "my.own:Model"}, "model = my.own:Model: expected linear, for exact solves"),
    ({"equilibrium": True, "attack": "my.own:Attack"}, "equilibrium = True: expected false"),
    (
        {"server-optimizer": "adam", "server-lr": 0.02},
        "estimator = inferred: expected oracle, or server-optimizer = sgd",
    ),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line_with_key_value_and_what_is_right(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_users_and_sizes() -> None:
    config = parse_config({"users": 5, "points-per-user": "60,10", "strategic-users": "0, 2-3"})
    assert config.points_asked() == (60, 10, 10, 10, 10)
    assert config.strategic() == {0, 2, 3}
    assert parse_config({"strategic-users": "none"}).strategic() == frozenset()
    assert parse_config({"strategic-users": "all"}).strategic() == frozenset(range(11))
    assert parse_config({"strategic-users": 3, "points-per-user": 7}).strategic() == {3}


def test_targets_of_strategic_users() -> None:
    config = parse_config({"strategic-users": "3,7,8", "target-shift": "2,1"})
    assert config.shifts() == (2, 1, 1)
    assert [config.shift(user) for user in (3, 7, 8, 0)] == [2, 1, 1, 2]
    assert [config.allies(user) for user in (3, 7, 8)] == [1, 2, 2]


def test_every_key_is_documented() -> None:
    for name, field in RunConfig.model_fields.items():
        assert field.description, name


def test_pyproject_holds_the_defaults() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["flwr"]["app"]["config"] == parse_config({}).flat()
    assert "federations" not in project["tool"]["flwr"]


def test_the_flat_form_comes_back() -> None:
    config = parse_config({"server-lr": 0.5, "users": 3, "strategic-users": "1"})
    assert parse_config(config.flat()) == config
    assert all(isinstance(value, bool | int | float | str) for value in config.flat().values())


LIGHT = """
import json, sys
from pfl_flower.run.config import parse_config
from pfl_flower.support.errors import ConfigError
for values in json.load(sys.stdin):
    try:
        parse_config(values)
    except ConfigError as error:
        print(error, file=sys.stderr)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
HEAVY = {"torch", "torchvision", "flwr", "ray", "numpy", "scipy", "sklearn", "matplotlib", "rich"}


def test_a_configuration_is_checked_without_what_a_run_needs() -> None:
    """Whatever is asked for, refused or not, is told from the tables alone."""
    every = [{table.point: name} for table in TABLES for name in table]
    asked = [{}, *every, {"attack": "my.own:Attack"}, *(values for values, _ in BAD)]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    assert not HEAVY & set(json.loads(done.stdout))
    assert len(done.stderr.splitlines()) >= len(BAD)
