"""Who holds which points: disjoint, a function of seed and user, as uneven as was asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pfl_flower.data.partitions import CLASS, Pool, classes, dirichlet, shards, similarity
from pfl_flower.data.rehearsal import Rehearsal
from pfl_flower.data.sources import Images, Source
from pfl_flower.data.spec import DataSpec
from pfl_flower.data.table import PARTITIONS
from pfl_flower.data.users import Partitioned
from pfl_flower.objective.user_data import UserData
from pfl_flower.run import memory
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.support.errors import ConfigError, DataError
from pfl_flower.support.seeding import generator

HERE = f"{__name__}:"
APART = [name for name, row in PARTITIONS.items() if row.reads]
DISJOINT = [name for name in APART if not PARTITIONS[name].shared]
POINTS, OWNERS = 120, 12


def owned(spec: DataSpec, *, owners: bool = True, constant: bool = False) -> Images:
    """Return points whose only feature is their number, of four classes and twelve owners."""
    numbers = torch.arange(POINTS, dtype=torch.float64)[:, None] / POINTS
    labels = torch.arange(POINTS) % (1 if constant else 4)
    labels[-1] = 3
    names = [f"writer {number // 10:02}" for number in range(POINTS)]
    return Images(
        (numbers, labels),
        (numbers[:8], torch.arange(8) % 4),
        label_noise=spec.label_noise,
        seed=spec.seed,
        owners=names if owners else None,
    )


class Line(Source):
    """Regression on twelve owners' points; a source that says no more than it must."""

    inputs, outputs, loss = 1, 1, "least-squares"

    def __init__(self, spec: DataSpec) -> None:
        self.owners = [number % OWNERS for number in range(POINTS)]

    def draw(self, user: int, points: int, seed: int) -> UserData:
        order = torch.randperm(POINTS, generator=generator(seed, "draw", user))[:points]
        features, labels = self.training_set()
        return UserData(features[order], labels[order])

    def training_set(self) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.arange(POINTS, dtype=torch.float64)[:, None]
        return features, 2 * features[:, 0]

    def test_set(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.training_set()


def evens_and_odds(pool: Pool, *, step: int = 2) -> list[np.ndarray[Any, Any]]:
    """A partition of one's own: user n has every so-manieth point from the n-th on."""
    return [np.arange(user, len(pool), step * pool.users) for user in range(pool.users)]


def wrong(pool: Pool, *, how: str) -> Any:
    """A partition of one's own that is none."""
    if how == "raises":
        raise RuntimeError("no such thing")
    return {
        "array": np.arange(pool.users),
        "too few": [[0], [1]],
        "empty": [[user] for user in range(pool.users - 1)] + [[]],
        "outside": [[user - 1] for user in range(pool.users)],
        "past": [[user + len(pool)] for user in range(pool.users)],
        "twice": [[0] for _ in range(pool.users)],
        "text": [["a"] for _ in range(pool.users)],
    }[how]


def problem(name: str, **keys: Any) -> Problem:
    spelled = {key.replace("_", "-"): value for key, value in keys.items()}
    return build_problem(
        parse_config(
            {"dataset": HERE + "owned", "partition": name, "strategic-users": 3, **spelled}
        )
    )


def held(found: Problem, user: int) -> tuple[list[int], list[int]]:
    """Return the numbers of the points that a user trains on, and is tested on."""
    data = found.source.draw(user, found.size(user), found.config.seed)
    tests = found.source.own_tests(user)
    return _numbers(data), [] if tests is None else _numbers(tests)


def _numbers(data: UserData) -> list[int]:
    return [round(value) for value in (data.features[:, 0] * POINTS).tolist()]


@pytest.mark.parametrize("name", [*DISJOINT, HERE + "evens_and_odds"])
def test_no_two_users_share_a_point_and_who_asks_first_does_not_matter(name: str) -> None:
    found, again = problem(name), problem(name, rounds=7)
    users = range(found.config.users)
    holdings = [held(found, user) for user in users]
    assert holdings == [held(again, user) for user in reversed(users)][::-1]
    every = [number for train, tests in holdings for number in train + tests]
    assert len(set(every)) == len(every)
    assert [len(train) for train, _ in holdings] == list(found.points)
    for train, tests in holdings:
        assert len(tests) == min(len(train + tests) - 1, round(0.2 * len(train + tests)))
    other = [held(problem(name, seed=2), user) for user in users]
    assert holdings != other
    # Who is the owner of what, or what one's own code says, is not of the seed.
    drawn = name in APART and name != "natural"
    assert drawn == ([{*a, *b} for a, b in holdings] != [{*a, *b} for a, b in other])


@pytest.mark.parametrize("name", APART)
def test_several_users_hold_what_each_of_them_does(name: str) -> None:
    found = problem(name)
    for user in range(found.config.users):
        size = found.size(user)
        alike = [other for other in range(found.config.users) if found.size(other) == size]
        together = found.source.draw_many(alike, size, 1)
        alone = found.source.draw(user, size, 1)
        row = alike.index(user)
        assert torch.equal(together.features[row], alone.features)
        assert torch.equal(together.labels[row], alone.labels)


def test_draws_are_what_they_were() -> None:
    keys = {"users": 3, "strategic-users": "none"}
    found = build_problem(parse_config(keys))
    assert not isinstance(found.source, Partitioned)
    assert found.points == (500, 500, 500)
    order = torch.randperm(1437, generator=generator(1, "draw", 2))[:500]
    features, labels = found.source.training_set()
    drawn = found.source.draw(2, found.size(2), 1)
    assert torch.equal(drawn.features, features[order])
    assert torch.equal(drawn.labels, labels[order])
    assert found.source.own_tests(2) is None


def test_a_number_of_points_is_a_subsample_and_leaves_the_test_sets_alone() -> None:
    whole, few = problem("similarity"), problem("similarity", points_per_user="4,60")
    for user in range(11):
        train, tests = held(whole, user)
        assert held(few, user) == (train[: 4 if user == 0 else 60], tests)
    (left_out,) = few.source.left_out
    assert (left_out.count, left_out.where) == (10, "user 1, user 2, user 3, ...")
    assert "fewer training points than points-per-user" in left_out.what


def test_a_number_that_nobody_reaches_takes_no_memory() -> None:
    asked = problem("similarity", points_per_user="1000000000000")
    assert asked.points == problem("similarity").points


def test_tests_are_clean_and_a_single_point_is_trained_on() -> None:
    found = problem("similarity", users=60, label_noise=1.0, test_share=0.9)
    source = found.source
    for user in range(60):
        tests = source.own_tests(user)
        assert tests is not None
        assert tests.labels.tolist() == [min(3, number % 4) for number in _numbers(tests)]
    noised = [source.draw(user, 1, 1).labels.item() for user in range(60)]
    clean = [_numbers(source.draw(user, 1, 1))[0] % 4 for user in range(60)]
    assert noised != clean
    alone = problem("similarity", users=120)
    assert alone.points == (1,) * 120
    (said,) = alone.source.left_out
    assert (said.what, said.count) == ("users with too few points for a test set", 120)
    assert problem("similarity", test_share=0.0).source.own_tests(0) is None


def test_natural_users_are_the_owners_in_their_order() -> None:
    found = problem("natural", users=11)
    for user in range(11):
        train, tests = held(found, user)
        assert sorted(train + tests) == list(range(10 * user, 10 * user + 10))
    (said,) = found.source.left_out
    assert str(said) == "training points that fell to no user: 10 (partition = natural)"
    line = problem("natural", dataset=HERE + "Line", users=12)
    assert line.points == (8,) * 12
    guess = line.source.draw(12, line.size(12), 1)
    assert len(guess.labels) == 8


def test_guesses_at_others_have_a_users_classes_and_points_of_anybody() -> None:
    found = problem("classes", partition_classes=1, users=8, test_share=0.0)
    source = found.source
    assert isinstance(source, Partitioned)
    for user in range(8):
        own = source.draw(user, found.size(user), 1)
        guess = source.draw(8 + user, found.size(8 + user), 1)
        assert torch.equal(own.labels.bincount(), guess.labels.bincount())
        assert set(_numbers(own)) != set(_numbers(guess))
        assert len(set(_numbers(guess))) == len(guess.labels)


def counts(dealt: Sequence[Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.array([np.bincount(labels[rows], minlength=10) for rows in dealt])


def digits_pool(users: int = 10) -> Pool:
    return Pool(build_problem(parse_config({})).source, users, 5)


def test_alpha_says_how_alike_users_are() -> None:
    pool = digits_pool()
    spread = []
    for alpha in (0.1, 1.0, 1000.0):
        table = counts(dirichlet(pool, alpha=alpha, min_points=1), pool.labels)
        spread.append(float((table / table.sum(axis=0)).std()))
        assert table.sum() == len(pool)
    assert spread == sorted(spread, reverse=True)
    assert spread[0] > 0.15
    assert spread[2] < 0.01


def test_classes_shards_and_similarity_are_what_they_say() -> None:
    pool = digits_pool()
    table = counts(classes(pool, classes=3), pool.labels)
    assert ((table > 0).sum(axis=1) == 3).all()
    assert (table[range(10), range(10)] > 0).all()
    table = counts(shards(pool, shards=2), pool.labels)
    assert (table.sum(axis=1) == 142).all()
    # A shard of 71 points lies in two neighbouring classes of some 140 at most.
    assert ((table > 0).sum(axis=1) <= 4).all()
    apart = counts(similarity(pool, share=0.0), pool.labels)
    assert ((apart > 0).sum(axis=1) <= 3).all()
    assert apart.sum(axis=1).max() - apart.sum(axis=1).min() <= 1
    mixed = counts(similarity(pool, share=0.5), pool.labels)
    assert (mixed.max(axis=1) > 0.4 * 143).all()
    assert ((mixed > 0).sum(axis=1) >= 8).all()
    assert mixed.sum(axis=1).max() - mixed.sum(axis=1).min() <= 1
    alike = counts(similarity(pool, share=1.0), pool.labels)
    assert alike.max() < 30


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"partition": "dirichlet", "dataset": "synthetic-linear"}, "draws, for synthetic data"),
        ({"partition": "natural", "dataset": "synthetic-logistic"}, '{"spread": 1.0}'),
        ({"partition": "nope"}, "partition = nope: expected draws, dirichlet"),
        ({"partition": "shards", "partition-alpha": 0.3}, "0.5, unless partition = dirichlet"),
        ({"partition-shards": 3}, "partition-shards = 3: expected 2, unless partition = shards"),
        ({"test-share": 0.3}, "test-share = 0.3: expected auto, unless partition = dirichlet"),
        ({"partition": "shards", "test-share": 1.0}, "test-share = 1.0: expected auto, or a num"),
        ({"partition": "shards", "test-share": "no"}, "test-share = 'no': expected auto, or a"),
        ({"partition": "dirichlet", "partition-alpha": 0.0}, "partition-alpha = 0.0: expected gr"),
        ({"partition": "shards", "points-per-user": "0"}, "points-per-user = 0: expected sizes"),
    ],
)
def test_what_cannot_be_is_refused_before_data_are_read(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(keys)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("natural", {"dataset": "digits"}, "partition = natural: expected data that say whose"),
        ("natural", {"users": 13}, "users = 13: expected at most 12, whose points there are"),
        ("similarity", {"users": 121}, "users = 121: expected at most 120"),
        (
            "dirichlet",
            {"users": 50, "partition_alpha": 0.01},
            "partition-alpha = 0.01: expected a larger number, fewer users or a smaller "
            "partition-min-points; in 11 tries one of 50 users is left with fewer than 2",
        ),
        ("dirichlet", {"partition_min_points": 11}, "partition-min-points = 11: expected at most"),
        ("classes", {"partition_classes": 5}, "partition-classes = 5: expected at most 4"),
        ("classes", {"users": 100}, "partition-classes = 2: expected fewer, or fewer users than"),
        ("shards", {"partition_shards": 11}, "partition-shards = 11: expected at most 10, for"),
        ("similarity", {"dataset": HERE + "Line"}, "draws, natural, whole, for regression, which"),
        (HERE + "wrong", {"partition_options": {"how": "raises"}}, "RuntimeError: no such thing"),
        (HERE + "wrong", {"partition_options": {"how": "array"}}, "not a ndarray"),
        (
            HERE + "wrong",
            {"partition_options": {"how": "too few"}},
            "each of 11 users, not 2 lists",
        ),
        (HERE + "wrong", {"partition_options": {"how": "empty"}}, "at least one, for user 10"),
        (HERE + "wrong", {"partition_options": {"how": "text"}}, "whole numbers, at least one"),
        (HERE + "wrong", {"partition_options": {"how": "outside"}}, "points from 0 to 119"),
        (HERE + "wrong", {"partition_options": {"how": "past"}}, "points from 0 to 119"),
        (HERE + "wrong", {"partition_options": {"how": "twice"}}, "and some are at two"),
        (HERE + "wrong", {"partition_options": {"haw": "twice"}}, "haw: expected how"),
    ],
)
def test_what_cannot_be_had_is_one_line(name: str, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        problem(name, **keys)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def unequal(spec: DataSpec) -> Images:
    """Owners of fewer points than there are."""
    source = owned(spec)
    source.owners = ["one"]
    return source


def mixed(spec: DataSpec) -> Images:
    """Owners of two kinds."""
    source = owned(spec)
    source.owners = ["one", 2] * (POINTS // 2)  # type: ignore[list-item]
    return source


@pytest.mark.parametrize(
    ("name", "said"),
    [("unequal", "it has 1 owners, expected one for each of its 120"), ("mixed", "list of whole")],
)
def test_owners_must_fit_the_points(name: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        problem("natural", dataset=HERE + name)


def many(spec: DataSpec) -> Images:
    """Return two hundred thousand points of ten classes."""
    draw = generator(1, "many")
    features = torch.rand((200_000, 2), generator=draw)
    labels = torch.randint(10, (200_000,), generator=draw)
    names = [number % 10_000 for number in range(200_000)]
    return Images((features, labels), (features[:9], labels[:9]), owners=names)


def test_what_cannot_come_about_is_refused_before_it_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it was tried")

    pool = digits_pool(150)
    assert len(dirichlet(pool, alpha=50.0, min_points=2)) == 150
    monkeypatch.setattr(Pool, "partitioned", never)
    with pytest.raises(
        ConfigError, match=r"partition-alpha = 0\.01: expected a larger number, such"
    ) as told:
        dirichlet(pool, alpha=0.01, min_points=2)
    monkeypatch.undo()
    does = float(str(told.value).partition("such as ")[2].partition(",")[0])
    assert len(dirichlet(pool, alpha=does, min_points=2)) == 150


@pytest.mark.parametrize(("alpha", "users"), [(0.1, 100), (0.3, 400), (1.0, 400)])
def test_a_rehearsal_leaves_as_many_short_as_the_partitioner_does(alpha: float, users: int) -> None:
    from flwr_datasets.partitioner import DirichletPartitioner

    pool = digits_pool(users)
    counts = np.bincount(pool.labels)
    short, rehearsed = [], []
    for seed in range(20):
        made = DirichletPartitioner(users, CLASS, alpha, min_partition_size=0, seed=seed)
        short.append(sum(len(rows) < 2 for rows in pool.partitioned(made)))
        rehearsed.append(Rehearsal(counts, users, 2, seed).short(alpha))
    # Means of 20 draws, whose deviation is less than their root each.
    assert np.mean(short) > 1
    assert abs(np.mean(short) - np.mean(rehearsed)) < 4 * (2 * np.mean(short) / 20) ** 0.5


def test_ten_thousand_users_of_all_points_are_counted_and_not_dealt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: 2**32)
    found = problem("whole", dataset=HERE + "many", users=10_000)
    assert found.points == (160_000,) * 10_000
    assert not found.source.left_out
    with pytest.raises(ConfigError, match=r"users = 10000: expected at most about [\d,]+, each"):
        found.check_memory("all")
    found.check_memory("server")


@pytest.mark.slow
@pytest.mark.parametrize("name", DISJOINT)
def test_ten_thousand_users_are_dealt_in_seconds(name: str) -> None:
    more = {"partition_alpha": 5.0, "partition_min_points": 1} if name == "dirichlet" else {}
    problem("similarity")  # imports are not what is timed
    began = time.process_time()
    found = problem(name, dataset=HERE + "many", users=10_000, **more)
    assert len(found.points) == 10_000
    assert found.population(tuple(range(10_000))).size == 10_000
    assert time.process_time() - began < 12
