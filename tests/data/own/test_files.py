"""Points of one's own from files: the same points by every door, and one clear line otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

import pfl_flower as pfl
from pfl_flower.data.catalogue import load_source
from pfl_flower.data.own.points import OwnPoints
from pfl_flower.data.spec import DataSpec
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import build_problem
from pfl_flower.support.errors import ConfigError, DataError

ROWS = 24


def frame() -> pandas.DataFrame:
    """Four growers' wines of three kinds: two columns of numbers, one of truth values."""
    draw = np.random.default_rng(3)
    return pandas.DataFrame(
        {
            "acid": draw.normal(3, 2, ROWS),
            "year": draw.integers(1990, 2020, ROWS),
            "organic": np.arange(ROWS) % 2 == 0,
            "kind": [f"kind {n % 3}" for n in range(ROWS)],
            "grower": [f"grower {n % 4}" for n in range(ROWS)],
        }
    )


def numbers(of: pandas.DataFrame) -> tuple[list[list[float]], list[str], list[str]]:
    """Return a frame's features, labels and owners."""
    features = of[["acid", "year", "organic"]].astype(float).to_numpy().tolist()
    return features, of["kind"].tolist(), of["grower"].tolist()


def records() -> list[dict[str, Any]]:
    """Return the frame row by row, to the last digit."""
    return [dict(zip(frame(), row, strict=True)) for row in frame().astype(object).to_numpy()]


def save_leaf(path: Path) -> None:
    """Write LEAF's JSON."""
    x, y, owners = numbers(frame())
    users = sorted(set(owners))
    data: dict[str, Any] = {user: {"x": [], "y": []} for user in users}
    for point, label, owner in zip(x, y, owners, strict=True):
        data[owner]["x"].append(point)
        data[owner]["y"].append(label)
    sizes = [len(data[user]["y"]) for user in users]
    path.write_text(json.dumps({"users": users, "num_samples": sizes, "user_data": data}))


def save_npz(path: Path) -> None:
    """Write the arrays."""
    x, y, owners = numbers(frame())
    np.savez(path, features=np.array(x), labels=np.array(y), users=np.array(owners))


def save_hub(path: Path) -> None:
    """Save a data set of Hugging Face's to a folder."""
    from datasets import Dataset

    Dataset.from_pandas(frame()).save_to_disk(str(path))


DOORS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "csv": ("wine.csv", lambda path: frame().to_csv(path, index=False)),
    "parquet": ("wine.parquet", lambda path: frame().to_parquet(path)),
    "json": ("wine.json", lambda path: path.write_text(json.dumps(records()))),
    "json lines": (
        "wine.jsonl",
        lambda path: path.write_text("\n".join(map(json.dumps, records()))),
    ),
    "npz": ("wine.npz", save_npz),
    "leaf": ("wine.json", save_leaf),
    "hf": ("wine", save_hub),
}
"""Name of the file, and what writes the frame to it."""


def spec_of(kind: str, path: Path, **more: Any) -> DataSpec:
    """Return the spec of the frame's points in a file."""
    named = kind not in ("npz", "leaf")
    columns = {"label_column": "kind", "user_column": "grower"} if named else {}
    return DataSpec(f"{kind.split()[0]}:{path}", **{**columns, **more})


@pytest.mark.parametrize("kind", DOORS)
def test_every_door_leads_to_the_same_points(kind: str, tmp_path: Path) -> None:
    name, save = DOORS[kind]
    save(tmp_path / name)
    source = load_source(spec_of(kind, tmp_path / name))
    assert isinstance(source, OwnPoints)
    assert source.classes == ("kind 0", "kind 1", "kind 2")
    assert (source.loss, source.outputs, source.inputs) == ("softmax", 3, 4)
    x, y, owners = numbers(frame())
    expected = {(*point, label, owner) for point, label, owner in zip(x, y, owners, strict=True)}
    found = set()
    features, labels = source.training_set()
    assert source.owners is not None and bool((features[:, -1] == 1).all())
    for point, label, owner in zip(features.tolist(), labels.tolist(), source.owners, strict=True):
        found.add((*point[:-1], source.classes[label], owner))
    assert len(found) == len(labels) == ROWS - round(0.2 * ROWS) and found < expected
    features, labels = source.test_set()
    tests = zip(features.tolist(), labels.tolist(), strict=True)
    held = {(*point[:-1], source.classes[label]) for point, label in tests}
    assert held == {point[:-1] for point in expected - found}
    assert set(source.owners) == set(owners), "an owner was left without a point"


def test_columns_are_scaled_by_the_training_points(tmp_path: Path) -> None:
    of = frame().assign(still=7.5)
    of.to_csv(tmp_path / "wine.csv", index=False)
    source = load_source(spec_of("csv", tmp_path / "wine.csv", standardise="training"))
    features = source.training_set()[0][:, :-1]
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(4, dtype=torch.float64))
    deviation = features.std(dim=0, correction=0)
    torch.testing.assert_close(deviation, torch.tensor([1, 1, 1, 0], dtype=torch.float64))
    assert [str(one) for one in source.left_out] == [
        "constant columns, which were not scaled: 1 (still)"
    ]
    given = {"mean": [0, 1990, 0, 7.5], "scale": [2, 10, 1, 1]}
    (tmp_path / "scales.json").write_text(json.dumps(given))
    scaled = load_source(
        spec_of("csv", tmp_path / "wine.csv", standardise=str(tmp_path / "scales.json"))
    )
    plain = load_source(spec_of("csv", tmp_path / "wine.csv"))
    mean, scale = (torch.tensor(given[part], dtype=torch.float64) for part in ("mean", "scale"))
    expected = (plain.training_set()[0][:, :-1] - mean) / scale
    torch.testing.assert_close(scaled.training_set()[0][:, :-1], expected)


KINDS = {
    "text": (["b", "a", "b", "a"], "auto", ("a", "b")),
    "whole numbers from 1": ([2, 1, 2, 1], "auto", (1, 2)),
    "truth values": ([True, False, True, False], "auto", (False, True)),
    "decimals": ([0.5, 1.5, 2.0, -1.0], "auto", ()),
    "whole numbers as regression": ([2, 1, 2, 1], "regression", ()),
    "decimals that are whole": ([2.0, 1.0, 2.0, 1.0], "classification", (1.0, 2.0)),
}


@pytest.mark.parametrize(("labels", "task", "classes"), KINDS.values(), ids=list(KINDS))
def test_labels_are_classes_or_numbers(
    labels: list[Any], task: str, classes: tuple[Any, ...], tmp_path: Path
) -> None:
    path = tmp_path / "points.csv"
    pandas.DataFrame({"x": [0.0, 1.0, 2.0, 3.0] * 3, "label": labels * 3}).to_csv(path, index=False)
    source = load_source(DataSpec(f"csv:{path}", task=task))
    assert isinstance(source, OwnPoints)
    assert source.classes == classes
    assert source.loss == ("softmax" if classes else "least-squares")
    by_feature = dict(zip([0.0, 1.0, 2.0, 3.0], labels, strict=True))
    features, answers = source.training_set()
    for x, answer in zip(features[:, 0].tolist(), answers.tolist(), strict=True):
        assert (classes[answer] if classes else answer) == by_feature[x]


def test_classes_that_are_told_are_all_there(tmp_path: Path) -> None:
    (tmp_path / "wine.csv").write_text(changed(kind=[0, 1, 2] * 8))
    source = load_source(spec_of("csv", tmp_path / "wine.csv", classes=5))
    assert isinstance(source, OwnPoints)
    assert (source.classes, source.outputs) == ((0, 1, 2, 3, 4), 5)


def changed(**columns: Any) -> str:
    """Return the frame as CSV with other columns."""
    return str(frame().assign(**columns).to_csv(index=False))


TEXT = frame().to_csv(index=False)
MISSING = TEXT.replace(TEXT.splitlines()[3].split(",")[0], "", 1)
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such label": (TEXT, {"label_column": "colour"}, "label-column = colour: expected one of"),
    "no such user": (TEXT, {"user_column": "owner"}, "user-column = owner: expected one of"),
    "a missing value": (MISSING, {}, "column acid has no value in row 3 (1 in all)"),
    "text for a number": (
        changed(acid=["low"] + [1.0] * (ROWS - 1)),
        {},
        "column acid has 'low' in row 1, expected numbers",
    ),
    "a missing label": (changed(kind=["a", None] * (ROWS // 2)), {}, "column kind has no value"),
    "a missing user": (changed(grower=["a", None] * (ROWS // 2)), {}, "column grower has no value"),
    "infinite": (changed(acid=[np.inf] + [1.0] * (ROWS - 1)), {}, "column acid has inf in row 1"),
    "one class": (changed(kind="red"), {}, "all labels are 'red', expected 2 classes or more"),
    "numbers that may be classes": (
        changed(kind=range(ROWS)),
        {},
        "task = auto: expected classification or regression",
    ),
    "text to regress": (TEXT, {"task": "regression"}, "task = regression: expected numbers"),
    "decimals to classify": (
        changed(kind=np.arange(ROWS) / 7),
        {"task": "classification"},
        "task = classification: expected classes",
    ),
    "noise on numbers": (
        changed(kind=np.arange(ROWS) / 7),
        {"label_noise": 0.1},
        "label-noise = 0.1: expected 0, for regression",
    ),
    "no rows": (TEXT.splitlines()[0] + "\n", {}, "no rows, expected a point in each"),
    "no file content": ("", {}, "cannot be read"),
    "no features": ("kind,grower\n" + "a,1\nb,2\n" * 5, {}, "no column beside kind, grower"),
    "other columns": (TEXT, {"columns": 7}, "columns = 7: expected 3, the features of csv:"),
    "other classes": (TEXT, {"classes": 3}, "classes = 3: expected labels 0 to 2"),
    "a class past those told": (changed(kind=[0, 1, 5] * 8), {"classes": 3}, "and one is 5"),
    "a test set of other columns": (
        TEXT,
        {"test_data": "other.csv"},
        "test-data has acid, year, expected those of the dataset: acid, year, organic",
    ),
    "a test set of numbers": (
        TEXT,
        {"test_data": "numbers.csv"},
        "test-data has labels of another kind",
    ),
    "no test set": (TEXT, {"test_data": "nope.csv"}, "dataset = csv:nope.csv: no such file"),
    "another shape": (TEXT, {"columns": 4, "shape": (1, 2, 2)}, "columns = 4: expected 3"),
    "classes and decimals": (
        changed(kind=np.arange(ROWS) / 7),
        {"classes": 4},
        "expected classes, and labels are decimals",
    ),
    "no scales": (TEXT, {"standardise": "/nope.json"}, "standardise = /nope.json: expected off"),
    "lengths that differ": (TEXT + "1,2,3,4,5,6,7\n", {}, "cannot be read"),
}


@pytest.mark.parametrize(("text", "keys", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_does_not_fit_is_one_line(
    text: str, keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "wine.csv").write_text(text)
    frame().drop(columns="organic").to_csv(tmp_path / "other.csv", index=False)
    (tmp_path / "numbers.csv").write_text(changed(kind=1))
    with pytest.raises((ConfigError, DataError)) as refused:
        load_source(spec_of("csv", tmp_path / "wine.csv", data_dir=str(tmp_path), **keys))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def wrong_npz(**arrays: Any) -> Callable[[Path], object]:
    """Return what writes other arrays than are right."""
    right = {"features": np.ones((6, 2)), "labels": np.arange(6) % 2}
    kept = {name: array for name, array in {**right, **arrays}.items() if array is not None}
    return lambda path: np.savez(path, **kept)


WRONG_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no labels": ("a.npz", wrong_npz(labels=None), "has no array labels"),
    "too few labels": ("a.npz", wrong_npz(labels=np.arange(5) % 2), "5 labels of 6 points"),
    "too few users": ("a.npz", wrong_npz(users=np.arange(5)), "5 users of 6 points"),
    "not a number": ("a.npz", wrong_npz(features=np.full((6, 2), np.nan)), "not finite in row 1"),
    "text": ("a.npz", wrong_npz(features=np.full((6, 2), "a")), "expected numbers (n, p)"),
    "objects": ("a.npz", wrong_npz(labels=np.array([None] * 6)), "cannot be read"),
    "half a test set": ("a.npz", wrong_npz(test_features=np.ones((2, 2))), "test_labels"),
    "other test points": (
        "a.npz",
        wrong_npz(test_features=np.ones((2, 3)), test_labels=np.arange(2)),
        "test points have 3 features, expected 2",
    ),
    "no archive": ("a.npz", lambda path: path.write_text("<html>"), "cannot be read"),
    "no LEAF": ("a.json", lambda path: path.write_text("[]"), "has no users and user_data"),
    "LEAF's text": (
        "a.json",
        lambda path: path.write_text(
            json.dumps({"users": ["u"], "user_data": {"u": {"x": ["be or not"], "y": [1]}}})
        ),
        "expected numbers",
    ),
    "LEAF's sizes": (
        "a.json",
        lambda path: path.write_text(
            json.dumps(
                {"users": ["u"], "num_samples": [2], "user_data": {"u": {"x": [[1]], "y": [1]}}}
            )
        ),
        "has 1 points, and num_samples says 2",
    ),
}


@pytest.mark.parametrize(("name", "save", "message"), WRONG_FILES.values(), ids=list(WRONG_FILES))
def test_a_wrong_file_is_one_line(
    name: str, save: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    save(tmp_path / name)
    kind = "npz" if name.endswith("npz") else "leaf"
    with pytest.raises(DataError) as refused:
        load_source(DataSpec(f"{kind}:{tmp_path / name}"))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["csv", "parquet", "json", "npz", "leaf"])
def test_a_file_that_is_not_there_is_one_line(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_source(DataSpec(f"{kind}:{tmp_path / 'nope'}"))


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "wine.csv"
    config = parse_config(
        {
            "dataset": f"csv:{path}",
            "label-column": "kind",
            "user-column": "grower",
            "partition": "natural",
            "users": 3,
            "strategic-users": "2",
        }
    )
    path.write_text(TEXT)
    first = build_problem(config)
    assert build_problem(config) is first
    path.write_text(changed(acid=9.0))
    second = build_problem(config)
    assert not torch.equal(first.source.training_set()[0], second.source.training_set()[0])
    assert first.source.key != second.source.key


def test_a_run_after_a_change_is_on_the_new_points(tmp_path: Path) -> None:
    path = tmp_path / "wine.csv"
    keys: dict[str, Any] = {
        "dataset": f"csv:{path}",
        "label_column": "kind",
        "nu": 0.1,
        "rounds": 2,
    }
    keys |= {"user_column": "grower", "partition": "natural", "users": 3, "strategic_users": "none"}
    ends = []
    for text in (TEXT, changed(acid=9.0), TEXT):
        path.write_text(text)
        ends.append(pfl.run(**keys).rho)
    assert (ends[0] == ends[2]).all() and (ends[0] != ends[1]).any()


def test_a_relative_path_is_of_data_dir_or_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wine.csv").write_text(TEXT)
    monkeypatch.chdir(tmp_path / "here")
    keys = {"label_column": "kind", "user_column": "grower"}
    with pytest.raises(DataError, match="no such file"):
        load_source(DataSpec("csv:wine.csv", **keys))
    found = load_source(DataSpec("csv:wine.csv", str(tmp_path / "data"), **keys))
    # A node's own data-path may be the file.
    same = load_source(DataSpec("csv:any", str(tmp_path / "data" / "wine.csv"), **keys))
    (tmp_path / "here" / "wine.csv").write_text(TEXT)
    here = load_source(DataSpec("csv:wine.csv", **keys))
    for other in (same, here):
        assert torch.equal(found.training_set()[0], other.training_set()[0])


def test_a_column_of_users_needs_the_natural_partition() -> None:
    with pytest.raises(ConfigError, match=r"user-column = grower: expected empty, unless"):
        parse_config({"dataset": "csv:wine.csv", "user-column": "grower"})
    with pytest.raises(ConfigError, match=r"label-column = kind: expected label, unless"):
        parse_config({"label-column": "kind"})


@pytest.mark.parametrize("kind", DOORS)
def test_a_file_of_its_own_is_the_test_set(kind: str, tmp_path: Path) -> None:
    """And whose points those are is known."""
    name, save = DOORS[kind]
    for part in ("points", "tests"):
        (tmp_path / part).mkdir()
        save(tmp_path / part / name)
    keys = {"test_data": str(tmp_path / "tests" / name), "holdout": 0.0}
    source = load_source(spec_of(kind, tmp_path / "points" / name, **keys))
    for features, labels in (source.training_set(), source.test_set()):
        assert (len(features), len(labels)) == (ROWS, ROWS)
    assert list(source.owners or ()) == list(source.test_owners or ()) != []


@pytest.mark.parametrize("kind", DOORS)
def test_without_a_holdout_all_points_are_there_to_train_on(kind: str, tmp_path: Path) -> None:
    name, save = DOORS[kind]
    save(tmp_path / name)
    source = load_source(spec_of(kind, tmp_path / name, holdout=0.0))
    assert len(source.training_set()[1]) == ROWS and len(source.test_set()[1]) == 0


@pytest.mark.parametrize("kind", DOORS)
def test_sizes_that_are_told_are_looked_at(kind: str, tmp_path: Path) -> None:
    name, save = DOORS[kind]
    save(tmp_path / name)
    with pytest.raises(ConfigError, match="columns = 7: expected 3, the features of"):
        load_source(spec_of(kind, tmp_path / name, columns=7))
    image = load_source(spec_of(kind, tmp_path / name, columns=3, shape=(3, 1, 1)))
    assert image.shape == (3, 1, 1)


def test_scales_that_changed_are_read_again(tmp_path: Path) -> None:
    (tmp_path / "wine.csv").write_text(TEXT)
    config = parse_config(
        {
            "dataset": "csv:wine.csv",
            "data-dir": str(tmp_path),
            "label-column": "kind",
            "user-column": "grower",
            "partition": "natural",
            "users": 3,
            "strategic-users": "2",
            "standardise": "scales.json",
        }
    )
    found = []
    for number in (1, 20):
        (tmp_path / "scales.json").write_text(json.dumps({"mean": [number] * 3, "scale": [1] * 3}))
        found.append(build_problem(config).source)
    first, second = found
    assert not torch.equal(first.training_set()[0], second.training_set()[0])
    assert first.key != second.key, "what was learned on other scales would be used again"


def save_two_leaves(path: Path) -> None:
    """Write LEAF's two folders: a grower without a test point, and one of test points alone."""
    for part, users in {"train": ["b", "a", "c"], "test": ["c", "a", "z"]}.items():
        (path / part).mkdir(parents=True)
        points = {user: [[ord(user) + n / 10, 0] for n in range(1, 4)] for user in users}
        data = {user: {"x": x, "y": [0, 1, 0]} for user, x in points.items()}
        sizes = [3] * len(users)
        content = {"users": users, "num_samples": sizes, "user_data": data}
        (path / part / "some.json").write_text(json.dumps(content))


def save_hub_parts(path: Path) -> None:
    """Save the same as two splits of a data set of Hugging Face's."""
    from datasets import Dataset, DatasetDict

    parts = {}
    for part, users in {"train": "bac", "test": "caz"}.items():
        rows = [(ord(user) + n / 10, 0.0, n % 2 - 1, user) for user in users for n in range(1, 4)]
        names = ("one", "two", "label", "user")
        parts[part] = Dataset.from_dict(
            {name: [row[place] for row in rows] for place, name in enumerate(names)}
        )
    DatasetDict(parts).save_to_disk(str(path))


GIVEN_TESTS: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "leaf": (save_two_leaves, {}),
    "hf": (save_hub_parts, {"user-column": "user"}),
}


@pytest.mark.parametrize("kind", GIVEN_TESTS)
def test_users_test_sets_that_come_with_the_data_are_theirs(kind: str, tmp_path: Path) -> None:
    save, keys = GIVEN_TESTS[kind]
    save(tmp_path / "points")
    keys = {
        "dataset": f"{kind}:{tmp_path / 'points'}",
        "partition": "natural",
        "users": 3,
        "strategic-users": "none",
        **keys,
    }
    found = build_problem(parse_config(keys))
    assert found.points == (3, 3, 3), "no training point is kept for a test set"
    assert found.source.tested
    tests = [found.source.own_tests(user) for user in range(3)]
    assert tests[1] is None
    for user, name in ((0, "a"), (2, "c")):
        own = tests[user]
        assert own is not None
        first = sorted(own.features[:, 0].tolist())
        assert first == [ord(name) + n / 10 for n in range(1, 4)]
    assert len(found.test_set.labels) == 9
    assert [str(one) for one in found.source.left_out] == [
        "users with too few points for a test set: 1 (user 1)"
    ]
    with pytest.raises(ConfigError, match=r"test-share = 0.5: expected auto, or 0, for data whose"):
        build_problem(parse_config({**keys, "test-share": 0.5}))
    untested = build_problem(parse_config({**keys, "test-share": 0.0}))
    assert not untested.source.tested and untested.source.own_tests(0) is None
    similar = {**keys, "partition": "similarity", "user-column": ""}
    assert "user-column" in keys or build_problem(parse_config(similar)).source.tested


def test_users_are_called_by_their_owners_names(tmp_path: Path) -> None:
    """As they are written, with a quote before what a spreadsheet would compute."""
    growers = ["=1+1", "Öberg, A.", "a", "z"] * (ROWS // 4)
    (tmp_path / "wine.csv").write_text(changed(grower=growers))
    keys: dict[str, Any] = {
        "dataset": f"csv:{tmp_path / 'wine.csv'}",
        "label_column": "kind",
        "user_column": "grower",
        "partition": "natural",
        "nu": 0.1,
        "rounds": 1,
    }
    result = pfl.run(**keys, users=4, strategic_users="1")
    assert result.users["owner"].tolist() == ["=1+1", "a", "z", "Öberg, A."]
    assert "'=1+1" in result.users_text
    save_npz(tmp_path / "wine.npz")
    dealt = {"dataset": f"npz:{tmp_path / 'wine.npz'}", "partition": "similarity", "nu": 0.1}
    assert "owner" not in pfl.run(**dealt, rounds=1, users=4, strategic_users="1").users
