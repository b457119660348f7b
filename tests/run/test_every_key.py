"""Every key that is given takes effect, or the run is refused: a row for each key and option.

A new key needs a row: in ``CHANGES``, settings in which it matters and a value that changes what
comes of them; or in ``SAME``, a value that must not, and why. If it means nothing to some settings,
it needs a row in ``UNREAD`` as well, and a refusal (``pfl_flower.run.unread``, or ``reads`` in the
table of what reads it).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message
from numpy.typing import NDArray
from torch import nn

import pfl_flower as pfl
from pfl_flower.attacks.setup import AttackSetup
from pfl_flower.attacks.untargeted import SignFlip
from pfl_flower.data.partitions import Pool
from pfl_flower.data.spec import DataSpec
from pfl_flower.data.synthetic import Synthetic
from pfl_flower.objective.regularizers import SquaredL2
from pfl_flower.objective.two_layer import TwoLayer
from pfl_flower.run.config import parse_config
from pfl_flower.run.keys import Keys, kebab
from pfl_flower.run.tables import TABLES
from pfl_flower.run.tracking.tracker import Nobody, TrackedRun
from pfl_flower.transport.records import ARRAYS
from pfl_flower.transport.wire import to_record, to_tensor
from tests.support.runs import configure, play, tampering

Settings = Mapping[str, Any]

BASE: Settings = {
    "dataset": "synthetic-logistic",
    "users": 4,
    "points_per_user": "20",
    "strategic_users": "3",
    "nu": 0.1,
    "rounds": 3,
    "evaluate_every": 0,
}


def own_data(spec: DataSpec) -> Synthetic:
    """Data that differ with where they are, and with the network that sees them."""
    return Synthetic("logistic", 3, len(spec.data_dir) + len(spec.weights))


def own_model(inputs: int, outputs: int, *, width: int = 3) -> TwoLayer:
    return TwoLayer(inputs, outputs, hidden=width)


def own_net(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3), nn.Linear(3, outputs))


def own_regularizer(*, lam: float, factor: float = 1.0) -> SquaredL2:
    return SquaredL2(lam=factor * lam)


def own_attack(setup: AttackSetup, *, gain: float = 1.0) -> SignFlip:
    return SignFlip(datasets=setup.own, strength=gain)


def own_partition(pool: Pool, *, first: int = 0) -> list[NDArray[np.int64]]:
    return [np.arange(first + user, len(pool), pool.users) for user in range(pool.users)]


def own_tracker(run: TrackedRun, *, tag: str = "a") -> Nobody:
    return Nobody(run)


def own(name: str) -> str:
    return f"{__name__}:{name}"


STEP: Settings = {"local_solver": "sgd"}
FIVE: Settings = {"users": 5, "strategic_users": "4"}
DIGITS: Settings = {"dataset": "digits"}
DIRICHLET: Settings = {**DIGITS, "partition": "dirichlet"}
NET: Settings = {**DIGITS, "local_solver": "adam", "strategic_users": "none"}
NARROW: Settings = {**NET, "model": "two-layer", "hidden": 4}
OWN_DATA: Settings = {"dataset": own("own_data"), "strategic_users": "none"}
ADAM: Settings = {"server_lr": 0.1, "estimator": "oracle"}
FALLING: Settings = {"server_lr": 0.01, "server_lr_decay": 0.5}
DATA: Settings = {"attack": "data"}
ASKING: Settings = {**DATA, "poisoning": "indifference", "poisoning_points": 50}
DRAWN: Settings = {**ASKING, "poisoning_labels": "drawn"}
ALLIES: Settings = {"strategic_users": "2,3"}
TRACKED: Settings = {"tracker": own("own_tracker")}
TABLE: Settings = {"dataset": "csv:{folder}/points.csv", "local_solver": "sgd"}

CHANGES: Mapping[str, tuple[Settings, Any]] = {
    "seed": ({}, 2),
    "rounds": ({}, 4),
    "dtype": (STEP, "float32"),
    "save_trajectory": ({}, True),
    "dataset": ({}, "synthetic-linear"),
    "dataset_options": ({}, '{"spread": 2.0}'),
    "data_dir": (OWN_DATA, "there"),
    "embedding_weights": (OWN_DATA, "there"),
    "features": ({}, 5),
    "label_column": (TABLE, "other"),
    "user_column": ({**TABLE, "partition": "natural", "user_column": "who"}, "whose"),
    "task": (TABLE, "regression"),
    "standardise": (TABLE, "training"),
    "holdout": (TABLE, 0.5),
    "test_data": (TABLE, "{folder}/points.csv"),
    "columns": (TABLE, 4),
    "classes": (TABLE, 5),
    "label_noise": ({}, 0.5),
    "users": ({}, 5),
    "points_per_user": ({}, "20,30"),
    "partition": (DIGITS, "classes"),
    "partition_options": ({**DIGITS, "partition": own("own_partition")}, '{"first": 5}'),
    "partition_alpha": (DIRICHLET, 50.0),
    "partition_min_points": ({**DIRICHLET, "partition_alpha": 0.3}, 300),
    "partition_classes": ({**DIGITS, "partition": "classes"}, 3),
    "partition_shards": ({**DIGITS, "partition": "shards"}, 3),
    "partition_similarity": ({**DIGITS, "partition": "similarity"}, 0.1),
    "test_share": ({**DIGITS, "partition": "similarity", "evaluate_every": 1}, 0.5),
    "participation": ({}, 0.5),
    "participation_rescale": ({"participation": 0.5}, True),
    "model": ({**NET, "hidden": 784}, "two-layer"),
    "model_options": ({**NET, "model": own("own_model")}, '{"width": 2}'),
    "model_frozen": ({**NET, "model": own("own_net")}, "1"),
    "model_weights": ({**NET, "model": own("own_net")}, "{folder}/weights.pt"),
    "hidden": (NARROW, 5),
    "reduction": ({}, "mean"),
    "nu": ({}, 0.2),
    "regularizer": ({}, "l2"),
    "regularizer_options": ({"regularizer": own("own_regularizer")}, '{"factor": 2.0}'),
    "lam": ({}, 2.0),
    "personalization": ({}, "ditto"),
    "local_solver": ({}, "sgd"),
    "solver_tolerance": ({}, 10.0),
    "solver_iterations": ({}, 1),
    "local_lr": (STEP, 0.001),
    "local_lr_decay": (STEP, 0.5),
    "local_lr_floor": ({**STEP, "local_lr_decay": 0.1}, 0.01),
    "batch_size": (STEP, 4),
    "local_steps": (STEP, 2),
    "update_order": (STEP, "simultaneous"),
    "server_optimizer": (ADAM, "adam"),
    "server_lr": ({}, 0.01),
    "server_lr_factor": ({}, 0.5),
    "server_lr_decay": ({"server_lr": 0.01}, 0.5),
    "server_lr_floor": (FALLING, 0.01),
    "aggregation": ({}, "median"),
    "aggregation_options": ({"aggregation": "geometric-median"}, '{"steps": 1}'),
    "aggregation_mixing": ({}, True),
    "aggregation_tolerance": ({**FIVE, "aggregation": "trimmed-mean"}, 2),
    "krum_selected": ({**FIVE, "aggregation": "multi-krum"}, 1),
    "clipping_radius": ({"aggregation": "centred-clipping"}, 0.01),
    "max_gradient_norm": ({}, 1e-3),
    "strategic_users": ({}, "2"),
    "attack": ({}, "sign-flip"),
    "attack_options": ({"attack": own("own_attack")}, '{"gain": 2.0}'),
    "attack_strength": ({"attack": "sign-flip"}, 3.0),
    "attack_draws": ({"attack": "min-max"}, 3),
    "attack_knowledge": ({}, "omniscient"),
    "estimator": ({}, "oracle"),
    "coalition": (ALLIES, 1),
    "target": (DIGITS, "negate"),
    "target_shift": (DIGITS, "2"),
    "attack_model": ({"attack": "model"}, "{folder}/run"),
    "poisoning": (DATA, "sampling"),
    "poisoning_options": ({**ASKING, "poisoning_box": True}, '{"sweeps": 1}'),
    "poisoning_points": (ASKING, 40),
    "poisoning_queries": (ASKING, "uniform"),
    "poisoning_noise": (ASKING, 0.1),
    "poisoning_labels": (ASKING, "drawn"),
    "poisoning_draws": (DRAWN, 2),
    "poisoning_weight": (ASKING, 2.0),
    "poisoning_box": (ASKING, True),
    "poisoning_integer": ({**DATA, "poisoning": "matching"}, True),
    "initialization": ({**STEP, **DATA}, "attack-model"),
    "initialization_noise": (STEP, 0.5),
    "evaluate_every": ({}, 1),
    "honest_distance": (DIGITS, True),
    "equilibrium": ({}, True),
}
"""For each key settings, and a value that changes what comes of them, or is refused there."""

LIES = {"gradient_rtol"}
"""Keys about reports that no node sends which runs our code, with a test of their own below."""

CHUNKS: Settings = {**STEP, "batch_size": 4}
SAME: Mapping[str, tuple[Settings, Any, str]] = {
    "name": ({}, "another", "a folder's name"),
    "output_dir": ({}, "/nowhere", "a folder, of which nothing is written here"),
    "device": ({}, "cpu", "where it computes; without a card auto is cpu"),
    "checkpoint_every": ({}, 1, "what is kept moves nothing"),
    "resume": ({"checkpoint_every": 1}, "auto", "no checkpoint yet, so that it starts afresh"),
    "state_dir": ({"checkpoint_every": 1}, "memory", "where memory is kept"),
    "chunk_users": (CHUNKS, 2, "users draw the same data and batches whenever they do"),
    "min_nodes": ({}, 2, "the nodes that are there anyway"),
    "node_timeout": ({}, 5.0, "nobody is waited for"),
    "introduction_timeout": ({}, 5.0, "nobody is waited for"),
    "reply_timeout": ({}, 5.0, "nobody is waited for"),
    "tracker": ({}, own("own_tracker"), "who is told moves nothing"),
    "tracker_options": (TRACKED, '{"tag": "b"}', "what a tracker does moves nothing"),
    "site": ({}, True, "it says whose word decides a check, and moves nothing"),
}
"""For each key a value that must not change what comes of the settings, and why not."""

PICTURES: Settings = {"dataset": "tests.support.small_images:small_images"}
BACKDOOR = {"size": 1, "row": 0, "column": 0, "value": 0.5, "label": 2, "share": 0.9}
OPTIONS: Mapping[tuple[str, str, str], tuple[Settings, str]] = {
    ("dataset", "csv:PATH", "delimiter"): (TABLE, '{"delimiter": ";"}'),
    ("dataset", "hf:PATH", "config"): (
        {**TABLE, "dataset": "hf:{folder}/saved"},
        '{"config": "x"}',
    ),
    ("dataset", "synthetic-linear", "spread"): ({}, '{"spread": 2.0}'),
    ("dataset", "synthetic-linear", "tests"): ({"evaluate_every": 1}, '{"tests": 9}'),
    ("dataset", "synthetic-logistic", "tests"): ({"evaluate_every": 1}, '{"tests": 9}'),
    ("dataset", "synthetic-linear", "noise"): ({}, '{"noise": 2.0}'),
    ("dataset", "synthetic-logistic", "spread"): ({}, '{"spread": 2.0}'),
    ("model", "cnn", "channels"): (NET, '{"channels": 2}'),
    ("aggregation", "geometric-median", "smoothing"): ({}, '{"smoothing": 2.0}'),
    ("aggregation", "geometric-median", "steps"): ({}, '{"steps": 1}'),
    ("aggregation", "centred-clipping", "clippings"): ({}, '{"clippings": 1}'),
    ("attack", "rule-aware", "trials"): ({"aggregation": "krum", **FIVE}, '{"trials": 2}'),
    ("attack", "rule-aware", "guesses"): ({"aggregation": "median"}, '{"guesses": 1}'),
    ("attack", "gradient-matching", "points"): ({}, '{"points": 7}'),
    ("attack", "gradient-matching", "weight"): ({}, '{"weight": 0.01}'),
    ("attack", "gradient-matching", "sweeps"): ({}, '{"sweeps": 1}'),
    ("attack", "gradient-matching", "steps"): ({}, '{"steps": 1}'),
    ("attack", "gradient-matching", "pace"): ({}, '{"pace": 0.5}'),
    **{
        ("attack", attack, option): (PICTURES, json.dumps({option: value}))
        for attack in ("backdoor", "model-replacement")
        for option, value in BACKDOOR.items()
    },
    ("aggregation", "qrmed", "influence"): ({}, '{"influence": 0.01}'),
    ("aggregation", "qrmed", "steps"): ({}, '{"steps": 1}'),
    ("aggregation", "static-clipping", "then"): ({}, '{"then": "median"}'),
    ("aggregation", "bucketing", "size"): (FIVE, '{"size": 1}'),
    ("aggregation", "bucketing", "then"): (FIVE, '{"then": "sum"}'),
    ("aggregation", "dnc", "share"): ({}, '{"share": 0.5}'),
    ("aggregation", "fltrust", "points"): ({}, '{"points": 7}'),
    ("aggregation", "history-clipping", "beta"): ({}, '{"beta": 0.1}'),
    ("aggregation", "history-clipping", "clippings"): ({}, '{"clippings": 3}'),
    ("aggregation", "adaptive-clipping", "then"): ({}, '{"then": "sum"}'),
    ("poisoning", "indifference", "sweeps"): ({**ASKING, "poisoning_box": True}, '{"sweeps": 1}'),
    ("poisoning", "matching", "rounds"): ({**DATA, "poisoning_box": True}, '{"rounds": 1}'),
    ("poisoning", "matching", "gap"): ({**DATA, "poisoning_box": True}, '{"gap": 0.9}'),
}
"""For each member's option settings, and a value that changes what comes of them."""


def test_every_key_and_option_has_a_row() -> None:
    said = "give it a row in CHANGES or in SAME, see the head of this file"
    rows, keys = [*CHANGES, *SAME, *LIES], set(Keys.model_fields)
    assert keys - set(rows) == set(), said
    assert set(rows) - keys == set(), "no such key any more"
    assert len(rows) == len(set(rows)), "a key either changes what comes of a run or does not"
    options = {
        (table.point, name, option)
        for table in TABLES
        for name, row in table.items()
        for option in row.options.model_fields
    }
    assert options == set(OPTIONS), said.replace("CHANGES or in SAME", "OPTIONS")


@cache
def _came_of(settings: frozenset[tuple[str, Any]]) -> tuple[Any, ...]:
    result = pfl.run(**dict(settings))
    rows = list(csv.DictReader(io.StringIO(result.text)))
    for row in rows:
        del row["seconds"]
    metrics = {key: value for key, value in result.metrics.items() if "seconds" not in key}
    return rows, result.rho.tolist(), result.trajectory is None, metrics


def came_of(settings: Settings) -> tuple[Any, ...]:
    """Return what a run measured and where it ended, and its refusal if it was refused."""
    try:
        return _came_of(frozenset({**BASE, **settings}.items()))
    except (pfl.ConfigError, pfl.DataError) as error:
        return (str(error),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What settings name as ``{folder}``: with a run of CGA, and a table of points."""
    made = tmp_path_factory.mktemp("given")
    pfl.run(**BASE, output=made / "run")
    draw = np.random.default_rng(1)
    lines = ["a,b,label,other,who,whose"]
    for row in range(120):
        a, b = draw.normal(size=2)
        lines.append(f"{a},{b},{int(a > 0)},{int(b > 0)},{row % 4},{row // 30}")
    torch.save(own_net((64,), 10).state_dict(), made / "weights.pt")
    (made / "points.csv").write_text("\n".join(lines))
    return made


def placed(settings: Settings, folder: Path) -> dict[str, Any]:
    """Return settings with the folder where they name it."""
    return {
        key: value.replace("{folder}", str(folder)) if isinstance(value, str) else value
        for key, value in settings.items()
    }


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_changes_what_comes_of_a_run_or_is_refused(key: str, folder: Path) -> None:
    settings, value = CHANGES[key]
    before = placed(settings, folder)
    after = placed({**settings, key: value}, folder)
    value = after[key]
    if key == "model":
        del before["hidden"], after["hidden"]
    first, second = came_of(before), came_of(after)
    assert len(first) > 1, first[0]
    if len(second) == 1:
        assert key in REFUSED and second[0].startswith(f"{kebab(key)} = {value}: expected ")
    else:
        assert first != second, f"{key} = {value} was not heeded"


REFUSED = {"target", "columns"}
"""Keys that have one right value in each setting, so that every other is refused."""


@pytest.mark.parametrize(("point", "member", "option"), OPTIONS)
def test_an_option_changes_what_comes_of_a_run_or_is_refused(
    point: str, member: str, option: str, folder: Path
) -> None:
    settings, value = OPTIONS[point, member, option]
    if member == "hf:PATH":
        from datasets import Dataset

        Dataset.from_dict({"a": [0.0, 1.0] * 40, "label": [0, 1] * 40}).save_to_disk(
            folder / "saved"
        )
    chosen = placed({point: member, **settings}, folder)
    first, second = came_of(chosen), came_of({**chosen, f"{point}_options": value})
    assert len(first) > 1, first[0]
    if len(second) == 1:
        assert second[0].startswith((f"{point}-options = ", "label-column = label: expected one"))
    else:
        assert first != second


@pytest.mark.parametrize("key", SAME)
def test_a_key_that_must_not_change_what_comes_of_a_run(key: str, tmp_path: Path) -> None:
    settings, value, _ = SAME[key]
    value = str(tmp_path / value) if key == "state_dir" else value
    kept = key == "checkpoint_every" or "checkpoint_every" in settings
    ended = [
        came_of({**settings, **more, **({"output": tmp_path / str(number)} if kept else {})})
        for number, more in enumerate([{}, {key: value}])
    ]
    assert len(ended[0]) > 1, ended[0]
    assert ended[0] == ended[1]


def test_the_tolerance_of_grad_decides_on_reports_a_little_too_long() -> None:
    def longer(message: Message, reply: Message) -> Message:
        record = reply.content[ARRAYS]
        assert isinstance(record, ArrayRecord)
        rows = {key: to_tensor(value) for key, value in record.items()}
        grown = {key: 1.05 * row / torch.linalg.vector_norm(row) for key, row in rows.items()}
        reply.content[ARRAYS] = to_record(grown)
        return reply

    ended = [
        play(configure(regularizer="l2", rounds=1, **keys), nodes=5, app=tampering(1, longer))[0]
        for keys in ({}, {"gradient_rtol": 0.1})
    ]
    assert [len(record.rejections) for record in ended] == [1, 0]


NOT_READ: list[tuple[Settings, str]] = [
    ({"dataset": "digits", "features": 5}, "features = 5: expected 20, unless dataset = synth"),
    ({"data_dir": "/x"}, "data-dir = /x: expected empty, unless dataset = mnist, fashion-mnist, c"),
    (
        {"dataset": "mnist", "embedding_weights": "w"},
        "embedding-weights = w: expected empty, unless dataset = cifar10-embeddings, imagefolder-e",
    ),
    ({"partition_alpha": 1.0}, "partition-alpha = 1.0: expected 0.5, unless partition = dirichlet"),
    (
        {**DIRICHLET, "partition_classes": 3},
        "partition-classes = 3: expected 2, unless partition = classes",
    ),
    ({"test_share": 0.5}, "test-share = 0.5: expected auto, unless partition = dirichlet, classes"),
    (
        {**TABLE, "test_data": "t", "holdout": 0.5},
        "holdout = 0.5: expected auto, with test-data, which is held out",
    ),
    ({**DIGITS, "test_data": "t"}, "test-data = t: expected empty, unless dataset = csv:PATH, par"),
    ({"hidden": 5}, "hidden = 5: expected 784, unless model = two-layer"),
    ({"local_lr": 0.1}, "local-lr = 0.1: expected 0.02, unless local-solver = adam, sgd"),
    ({"local_lr_decay": 0.5}, "local-lr-decay = 0.5: expected 0.99, unless local-solver = adam"),
    ({"local_lr_floor": 0.0}, "local-lr-floor = 0.0: expected empty, unless local-solver = adam"),
    ({"local_steps": 2}, "local-steps = 2: expected 1, for exact solves"),
    ({"batch_size": 2}, "batch-size = 2: expected 0, for exact solves"),
    ({**STEP, "solver_tolerance": 1.0}, "solver-tolerance = 1.0: expected 1e-10, unless local-so"),
    ({**STEP, "solver_iterations": 9}, "solver-iterations = 9: expected 100, unless local-solver"),
    ({"initialization_noise": 0.1}, "initialization-noise = 0.1: expected 0.0, unless local-solve"),
    (
        {**DATA, "initialization": "attack-model"},
        "initialization = attack-model: expected global, unless local-solver = adam, sgd: an exact",
    ),
    ({"server_lr_decay": 0.9}, "server-lr-decay = 0.9: expected 1.0, unless server-lr is a number"),
    ({"server_lr_floor": 0.9}, "server-lr-floor = 0.9: expected 0.0, unless server-lr is a number"),
    (
        {"aggregation_tolerance": 0},
        "aggregation-tolerance = 0: expected empty, unless aggregation = trimmed-mean, krum, multi",
    ),
    (
        {"aggregation": "static-clipping", "aggregation_tolerance": 1},
        "aggregation-tolerance = 1: expected empty, unless aggregation = trimmed-mean, krum, multi"
        "-krum, bulyan, mda, adaptive-clipping, bucketing, dnc, static-clipping before one",
    ),
    ({"krum_selected": 2}, "krum-selected = 2: expected 0, unless aggregation = multi-krum"),
    ({"clipping_radius": 0.0}, "clipping-radius = 0.0: expected empty, unless aggregation = centr"),
    ({"gradient_rtol": 0.1}, "gradient-rtol = 0.1: expected 1e-06, unless regularizer = l2, smoo"),
    ({"state_dir": "/x"}, "state-dir = /x: expected empty, unless checkpoint-every or resume"),
    ({"attack_model": "/x"}, "attack-model = /x: expected exact, unless attack = model, data"),
    ({"attack_draws": 9}, "attack-draws = 9: expected 5, unless attack = little-is-enough, inner"),
    (
        {"attack_knowledge": "rule"},
        "attack-knowledge = rule: expected own, omniscient, or empty, for attack = cga",
    ),
    (
        {"attack": "rule-aware", "attack_knowledge": "surrogates"},
        "attack-knowledge = surrogates: expected rule, omniscient, or empty, for attack = rule-aw",
    ),
    (
        {"attack_knowledge": "omniscient", "site": True},
        "attack-knowledge = omniscient: expected another, for site = true",
    ),
    (
        {"attack_knowledge": "omniscient", "estimator": "oracle"},
        "estimator = oracle: expected inferred, for attack-knowledge = omniscient",
    ),
    ({"attack_strength": 0.0}, "attack-strength = 0.0: expected empty, unless attack = sign-flip"),
    ({**DATA, "coalition": 1}, "coalition = 1: expected 0, unless attack = cga"),
    (
        {"attack": "sign-flip", "estimator": "oracle"},
        "estimator = oracle: expected inferred, unless attack = cga",
    ),
    ({**STEP, "initialization": "attack-model"}, "initialization = attack-model: expected global,"),
    ({"poisoning": "sampling"}, "poisoning = sampling: expected auto, unless attack = data"),
    ({"poisoning_points": 9}, "poisoning-points = 9: expected 2000, unless attack = data"),
    (
        {"poisoning_queries": "uniform"},
        "poisoning-queries = uniform: expected gaussian, unless att",
    ),
    ({"poisoning_noise": 0.0}, "poisoning-noise = 0.0: expected 0.01, unless attack = data"),
    (
        {"poisoning_labels": "drawn"},
        "poisoning-labels = drawn: expected soft, unless attack = data",
    ),
    ({"poisoning_draws": 2}, "poisoning-draws = 2: expected 1, unless attack = data"),
    ({"poisoning_weight": 2.0}, "poisoning-weight = 2.0: expected 1.0, unless attack = data"),
    ({"poisoning_box": True}, "poisoning-box = True: expected false, unless attack = data"),
    ({"poisoning_integer": True}, "poisoning-integer = True: expected false, unless attack = data"),
    (
        {**DATA, "poisoning_points": 9},
        "poisoning-points = 9: expected 2000, unless poisoning = sampling, indifference, and auto",
    ),
    (
        {**DATA, "dataset": "synthetic-linear", "poisoning_box": True},
        "poisoning-box = True: expected false, unless poisoning = auto, indifference, matching, ",
    ),
    (
        {**DATA, "poisoning": "sampling", "poisoning_box": True},
        "poisoning-box = True: expected false, unless poisoning = auto, indifference, matching",
    ),
    (
        {**DATA, "poisoning_queries": "uniform"},
        "poisoning-queries = uniform: expected gaussian or images, for matching",
    ),
    (
        {**DATA, "poisoning": "sampling", "poisoning_noise": 0.5},
        "poisoning-noise = 0.5: expected 0.01, for the labels of a classifier",
    ),
    (
        {**ASKING, "poisoning_draws": 2},
        "poisoning-draws = 2: expected 1, unless poisoning-labels =",
    ),
    ({"honest_distance": True}, "honest-distance = True: expected false, without images"),
]
"""Keys that mean nothing to the rest of the settings."""

WRONG: list[tuple[Settings, str]] = [
    ({**STEP, "local_lr": 0.001, "local_lr_floor": 0.005}, "local-lr-floor = 0.005: expected at m"),
    (
        {"server_lr": 0.1, "server_lr_floor": 0.2},
        "server-lr-floor = 0.2: expected at most server-l",
    ),
    (
        {"server_lr": 0.1, "server_lr_factor": 0.1, "server_lr_floor": 0.05},
        "server-lr-floor = 0.05: expected at most server-lr times server-lr-factor, which is 0.01",
    ),
    ({"strategic_users": "3-2"}, "strategic-users = 3-2: expected 2-3 for 3-2"),
    ({"strategic_users": "3,3"}, "strategic-users = 3,3: expected each id once, and 3 is there tw"),
    ({"strategic_users": "3,1-3"}, "strategic-users = 3,1-3: expected each id once"),
    ({"strategic_users": "2-4"}, "strategic-users = 2-4: expected ids 0 to 3"),
    ({"strategic_users": "1-1000000000000"}, "strategic-users = 1-1000000000000: expected ids 0"),
    ({"strategic_users": "9" * 5000}, f"strategic-users = {'9' * 60}"),
    ({"points_per_user": "1,2,3,4,5"}, "points-per-user = 1,2,3,4,5: expected at most 4 sizes"),
    ({"points_per_user": "9" * 5000}, f"points-per-user = {'9' * 60}"),
    ({"target_shift": "1,1"}, "target-shift = 1,1: expected at most 1, one for each strategic"),
    ({**DIGITS, "target_shift": "10"}, "target-shift = 10: expected 1 to 9, for 10 classes"),
    ({**DIGITS, "target_shift": "11"}, "target-shift = 11: expected 1 to 9, for 10 classes"),
    (
        {"dataset": own("own_data"), "target_shift": "2"},
        "target-shift = 2: expected 1, for labels of one score",
    ),
    ({"coalition": 2}, "coalition = 2: expected at most 1, the number of strategic users"),
    ({"participation": 0.1}, "participation = 0.1: expected at least 0.25, so that a user is ask"),
    ({"participation": 0.9}, "participation = 0.9: expected 1, or at most 0.75: this asks all 4"),
]
"""Values that cannot be had as they stand."""


@pytest.mark.parametrize(
    ("settings", "said"), NOT_READ + WRONG, ids=[said[:60] for _, said in NOT_READ + WRONG]
)
def test_what_cannot_take_effect_is_refused(settings: Settings, said: str) -> None:
    with pytest.raises(pfl.ConfigError) as refused:
        pfl.run(**{**BASE, **settings})
    assert str(refused.value).startswith(said)


SIGNS = {-1.0: "reports its own", 0.0: "reports nothing"}


@pytest.mark.parametrize("strength", SIGNS)
def test_a_strength_of_either_sign_and_none_are_numbers_like_others(strength: float) -> None:
    settings = {"attack": "sign-flip", "rounds": 1}
    ended = came_of({**settings, "attack_strength": strength})
    reported = float(ended[0][-1]["strategic_gradient_norm"])
    usual = float(came_of(settings)[0][-1]["strategic_gradient_norm"])
    assert reported == abs(strength) * usual
    assert ended != came_of(settings)


def test_a_small_local_lr_is_not_raised_by_the_default_floor() -> None:
    """It was: 0.001 and 1e-9 gave the trajectory of 0.005."""
    rhos = [came_of({**STEP, "local_lr": lr})[1] for lr in (0.005, 0.001, 1e-9)]
    assert rhos[0] != rhos[1] != rhos[2]
    spelled = came_of({**STEP, "local_lr": 0.02, "local_lr_floor": 0.005})
    assert spelled == came_of(STEP)


def test_nobody_strategic_needs_no_key_of_an_attack() -> None:
    """A preset's are what the attacker would have done; what is given besides is refused."""
    quiet = {"rounds": 1, "points_per_user": 20, "strategic_users": "none", "equilibrium": False}
    assert pfl.run("digits-squared-l2-model", **quiet).passed
    with pytest.raises(pfl.ConfigError, match=r"^attack = model: expected no key of an attack, fo"):
        pfl.run("digits-squared-l2", **quiet, attack="model")
    with pytest.raises(pfl.ConfigError, match=r"^coalition = 1: expected no key of an attack"):
        pfl.sweep("digits-squared-l2-honest", {"lam": [1]}, coalition=1, progress=False)
    assert parse_config({"strategic-users": "none", "attack": "model"}).attack == "model"
