"""Nodes with a file of points each, and a server that has none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from numpy.typing import NDArray

from pfl_flower import client_app, server_app
from pfl_flower.data.away import Away
from pfl_flower.data.users import Partitioned
from pfl_flower.run.columns import Table
from pfl_flower.run.config import parse_config
from pfl_flower.run.finished import Result
from pfl_flower.run.problem import build_problem
from pfl_flower.run.trial import check_before
from pfl_flower.support.errors import ConfigError, DataError
from pfl_flower.transport.inprocess import InProcessGrid
from tests.support.apart import APART, SITE, TOGETHER, write_apart


def play(
    keys: dict[str, Any],
    nodes: dict[int, dict[str, Any]] | None = None,
    folder: Path | None = None,
) -> tuple[NDArray[np.float64], Table, dict[str, Any]]:
    """Return a run's trajectory, its users, and its summary."""
    config = parse_config({**SITE, **keys})
    grid = InProcessGrid(client_app.app, nodes=3, run_config=config.flat(), node_configs=nodes)
    found = Result.of(server_app.run(grid, build_problem(config), folder=folder))
    assert found.trajectory is not None
    return found.trajectory, found.users, dict(found.summary)


def own_files(places: list[Path]) -> dict[int, dict[str, Any]]:
    """Return the nodes' own configurations: one names its file, the others their folders."""
    paths = [places[0] / "points.csv", *places[1:]]
    return {node: {"data-path": str(path)} for node, path in enumerate(paths)}


def test_files_apart_come_to_what_they_come_to_together(tmp_path: Path) -> None:
    """To the bit: a user's points, its test set and its order are those of the natural user."""
    places = write_apart(tmp_path / "data")
    apart, users, said = play(dict(APART), own_files(places), tmp_path / "out")
    together, known, _ = play({**TOGETHER, "data-dir": str(tmp_path / "data" / "all")})
    assert np.array_equal(apart, together)
    assert np.abs(apart[-1] - apart[0]).max() > 0.1
    for name in ("train", "tests", "theta", "rho", "alone"):
        assert users[name][:2].tolist() == known[name][:2].tolist(), name
    assert np.isnan(users["train"][2]) and known["train"][2] == 48
    metrics = said["metrics"]
    assert {"own_theta_mean", "own_rho_worst"} <= set(metrics)
    assert not {"accuracy_true", "loss_true", "distance_to_target"} & set(metrics)
    assert "own_theta_mean" in said["nodes_word"] and said["passed"]
    assert (tmp_path / "out" / "run.png").exists() and (tmp_path / "out" / "users.png").exists()
    assert not (tmp_path / "out" / "holdings.png").exists(), "the server knows nobody's points"


def test_the_servers_own_test_set_is_what_it_evaluates_on(tmp_path: Path) -> None:
    places = write_apart(tmp_path / "data")
    tests = {"test-data": str(tmp_path / "data" / "test.csv")}
    plain, _, _ = play(dict(APART), own_files(places))
    tested, _, said = play({**APART, **tests}, own_files(places))
    assert np.array_equal(plain, tested)
    frame = pandas.read_csv(tests["test-data"])
    features = np.column_stack([frame[["a", "b", "c"]].to_numpy(), np.ones(len(frame))])
    answers = (features @ tested[-1].reshape(3, 4).T).argmax(axis=1)
    right = float((answers == frame["label"]).mean())
    assert said["metrics"]["accuracy_true"]["values"][0] == pytest.approx(right)
    assert "accuracy_true" not in said["nodes_word"]
    # A node with a file of its own does not have the server's.
    assert "local_accuracy" not in said["metrics"]


def test_a_node_without_its_file_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    places = write_apart(tmp_path / "data")
    (places[1] / "points.csv").unlink()
    _, users, said = play(dict(APART), own_files(places))
    assert any("could not take part" in one["what"] for one in said["left_out"])
    # Who is left acts for all users: its file is all that they have.
    assert said["metrics"]["accepted"]["values"] == [3]
    assert users["train"].tolist()[:2] == [24, 24]


def test_what_the_server_has_of_points_that_are_away(tmp_path: Path) -> None:
    places = write_apart(tmp_path)
    config = parse_config({**SITE, **APART})
    server = build_problem(config).source
    assert isinstance(server, Away) and server.tested
    assert (server.inputs, server.outputs, server.shape) == (4, 3, (3,))
    assert len(server.test_set()[1]) == 0
    for ask in (lambda: server.draw(0, 1, 1), server.training_set):
        with pytest.raises(DataError, match=r"dataset = csv:points.csv: .* on nodes alone"):
            ask()
    own = parse_config({**SITE, **APART, "data-dir": str(places[1])})
    node = build_problem(own, on_node=True)
    assert isinstance(node.source, Partitioned) and node.points == (36, 36, 36)
    assert isinstance(build_problem(own).source, Away), "the server looks at no user's points"
    image = parse_config({**SITE, **APART, "columns": "3x1x1"})
    assert build_problem(image).source.shape == (3, 1, 1)
    check_before(config)


def test_users_of_one_machine_share_its_points_and_not_their_test_sets(tmp_path: Path) -> None:
    write_apart(tmp_path)
    keys = {**SITE, "partition": "whole", "data-dir": str(tmp_path / "2"), "users": 80}
    found = build_problem(parse_config(keys))
    assert found.points == (48,) * 80
    assert not found.source.left_out
    tests = [found.source.own_tests(user) for user in range(80)]
    assert all(one is not None and len(one.labels) == 12 for one in tests)
    assert not torch.equal(tests[0].features, tests[1].features)  # type: ignore[union-attr]
    guess = found.source.draw(80, found.size(80), 1)
    assert len(guess.labels) == 48


SCALES = '{"mean": [1, 0, 0], "scale": [2, 1, 1]}'


def test_scales_lie_beside_the_points_on_every_machine(tmp_path: Path) -> None:
    places = write_apart(tmp_path / "data")
    for place in [*places, tmp_path / "data" / "all", tmp_path / "data"]:
        (place / "scales.json").write_text(SCALES)
    keys = {"standardise": "scales.json"}
    apart, _, _ = play({**APART, **keys}, own_files(places))
    folder = {"data-dir": str(tmp_path / "data" / "all")}
    together, _, _ = play({**TOGETHER, **keys, **folder})
    plain, _, _ = play({**TOGETHER, **folder})
    assert np.array_equal(apart, together)
    assert not np.array_equal(apart, plain)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no number of features": ({"columns": 0}, "columns = 0: expected the number of features, at a"),
    "no number of classes": ({"classes": 0}, "classes = 0: expected their number, or task = regre"),
    "one class": ({"classes": 1}, "classes = 1: expected at least 2"),
    "classes of a regression": ({"task": "regression"}, "classes = 3: expected 0, for task = regr"),
    "scales of each its own": ({"standardise": "training"}, "standardise = training: expected off"),
    "an equilibrium": (
        {"equilibrium": True, "attack": "cga"},
        "equilibrium = True: expected false, where no machine has all",
    ),
    "a distance": ({"honest-distance": True}, "honest-distance = True: expected false, where no m"),
    "a mean of sizes": (
        {"reduction": "scaled-sum"},
        "reduction = scaled-sum: expected sum or mean",
    ),
    "points of the server's": (
        {"aggregation": "fltrust"},
        "aggregation = fltrust: expected a rule without points of the server's, where no machine",
    ),
    "an exact model": ({"attack": "model"}, "attack-model = exact: expected the folder of a CGA r"),
    "exact data": ({"attack": "data"}, "attack-model = exact: expected the folder of a CGA run"),
    "a held-out part and a file": (
        {"test-data": "t.csv", "holdout": 0.3},
        "holdout = 0.3: expected auto, with test-data",
    ),
    "no such shape": ({"columns": "3x1"}, "columns = '3x1': expected a whole number of at least 0"),
    "synthetic": ({"dataset": "synthetic-linear"}, "synthetic"),
    "a test set of digits": (
        {"dataset": "digits", "columns": 0, "classes": 0, "test-data": "t.csv"},
        "test-data = t.csv: expected empty, unless dataset = csv:PATH",
    ),
}


@pytest.mark.parametrize(("keys", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_takes_points_at_the_server_is_one_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({**SITE, **APART, **keys})
    assert message in str(refused.value) and "\n" not in str(refused.value)


LAB = {"site": False, "columns": 0, "classes": 0}


@pytest.mark.parametrize(
    "keys", [{"equilibrium": True, "attack": "cga"}, {"reduction": "scaled-sum"}]
)
def test_it_is_refused_in_a_laboratory_too_whose_nodes_may_have_files(keys: dict[str, Any]) -> None:
    parse_config({**SITE, **APART, **LAB})
    with pytest.raises(ConfigError, match="where no machine has all users' points"):
        parse_config({**SITE, **APART, **LAB, **keys})


NODES_DATA: dict[str, tuple[str, str]] = {
    "no file": ("", "no such file or folder"),
    "other features": ("a,b,label\n1,2,0\n3,4,1\n", "columns = 3: expected 2, the features of csv"),
    "a class too many": ("a,b,c,label\n1,2,3,0\n3,4,5,3\n", "classes = 3: expected labels 0 to 2"),
    "decimals": ("a,b,c,label\n1,2,3,0\n3,4,5,0.5\n", "expected classes, and labels are decimals"),
    "text": ("a,b,c,label\n1,2,3,x\n3,4,5,y\n", "classes = 3: expected labels 0 to 2"),
}


@pytest.mark.parametrize(("text", "message"), NODES_DATA.values(), ids=list(NODES_DATA))
def test_a_nodes_file_that_is_not_as_the_run_tells_is_one_line(
    text: str, message: str, tmp_path: Path
) -> None:
    if text:
        (tmp_path / "points.csv").write_text(text)
    config = parse_config({**SITE, **APART, "data-dir": str(tmp_path)})
    with pytest.raises((ConfigError, DataError)) as refused:
        build_problem(config, on_node=True)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_one_point_of_one_class_is_a_users_data(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("a,b,c,label\n1,2,3,1\n")
    config = parse_config({**SITE, **APART, "data-dir": str(tmp_path)})
    found = build_problem(config, on_node=True)
    assert (found.points, found.source.outputs) == ((1, 1, 1), 3)
    assert found.source.own_tests(0) is None
