"""A user's bits are its own: whoever shares its node, however many threads there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_flower.objective import aligned
from pfl_flower.objective.losses import LOSSES
from pfl_flower.objective.models import Linear, Model
from pfl_flower.objective.own_points import OwnPoints
from pfl_flower.objective.regularizers import L2
from pfl_flower.objective.shared_points import SharedPoints
from pfl_flower.objective.table import REGULARIZERS
from pfl_flower.objective.two_layer import TwoLayer
from pfl_flower.objective.user_data import UserData
from pfl_flower.solvers.population import Population
from pfl_flower.support.threads import each, one_thread, thread_limit
from tests.support import problems
from tests.support.runs import configure, play, trajectory

USERS = 11
SIZES = [(33, 33), (1, 7), (2, 1), (17, 5), (101, 65), (131, 300)]
"""Points and features: lines of the cache begin at no user's but the first."""


def users_of(points: int, inputs: int, loss: str, outputs: int) -> list[UserData]:
    draw = problems.generator(points + inputs)
    features = problems.normal(USERS, points, inputs, seed=draw)
    labels = torch.randint(max(outputs, 2), (USERS, points), generator=draw)
    if loss != "softmax":
        labels = 2.0 * labels.double() - 1
    return [UserData(*pair) for pair in zip(features, labels, strict=True)]


def population(users: list[UserData], model: Model, loss: str, dtype: torch.dtype) -> Population:
    coupling = L2(lam=3.0)
    return Population(
        users, model=model, loss=LOSSES[loss](), regularizer=coupling, nu=0.1, dtype=dtype
    )


Work = Callable[[Population, Tensor], Tensor]
WORK: Mapping[str, Work] = {
    "value": lambda some, theta: some.value(theta),
    "gradient": lambda some, theta: some.gradient(theta),
    "report": lambda some, theta: some.report(torch.full_like(theta[0], 0.2), theta),
    "minibatch": lambda some, theta: some.minibatch_gradient(
        theta, torch.linspace(0, 0.99, 5).expand(some.size, -1)
    ),
    "moments": lambda some, theta: some.second_moments(theta),
    "product": lambda some, theta: torch.cat(
        [one.loss.hessian_product(theta, theta.flip(1)) for one in some._buckets]
    ),
}


def model_of(kind: str, inputs: int, outputs: int) -> Model:
    return TwoLayer(inputs, outputs, 13) if kind == "two-layer" else Linear(inputs, outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize(("points", "inputs"), SIZES)
@pytest.mark.parametrize(
    ("kind", "loss", "outputs"),
    [
        ("linear", "softmax", 10),
        ("linear", "softmax", 3),
        ("linear", "logistic", 1),
        ("linear", "least-squares", 1),
        ("two-layer", "softmax", 3),
        ("two-layer", "logistic", 1),
    ],
)
def test_in_any_company_on_any_number_of_threads(
    kind: str, loss: str, outputs: int, points: int, inputs: int, dtype: torch.dtype
) -> None:
    model = model_of(kind, inputs, outputs)
    users = users_of(points, inputs, loss, outputs)
    theta = problems.normal(USERS, model.dim, seed=problems.generator(2)).to(dtype)
    names = [name for name in WORK if kind == "linear" or name in ("value", "gradient", "report")]
    for name in names:
        found = {}
        for threads in (1, 2, 3):
            with thread_limit(threads), one_thread():
                for size in (1, 4, USERS):
                    groups = [slice(n, n + size) for n in range(0, USERS, size)]
                    parts = [
                        WORK[name](population(users[some], model, loss, dtype), theta[some])
                        for some in groups
                    ]
                    found[threads, size] = torch.cat(parts)
        first = found[1, 1]
        assert first.abs().max() > 0
        unlike = [key for key, other in found.items() if not torch.equal(other, first)]
        assert not unlike, (name, unlike)


@pytest.mark.parametrize("coupling", ["squared-l2", "l2", "smooth-l2"])
@pytest.mark.parametrize(
    ("loss", "outputs"), [("softmax", 3), ("logistic", 1), ("least-squares", 1)]
)
def test_exact_solves(coupling: str, loss: str, outputs: int) -> None:
    model, users = Linear(9, outputs), users_of(33, 9, loss, outputs)
    start = problems.normal(USERS, model.dim, seed=problems.generator(3))
    rho = problems.normal(model.dim, seed=problems.generator(4))
    found = {}
    for threads in (1, 2):
        for size in (1, 4, USERS):
            with thread_limit(threads):
                parts = []
                for first in range(0, USERS, size):
                    some = slice(first, first + size)
                    everyone = Population(
                        users[some],
                        model=model,
                        loss=LOSSES[loss](),
                        regularizer=REGULARIZERS.load(coupling)(lam=2.0),
                        nu=0.1,
                    )
                    parts.append(everyone.solve(rho, start[some]).theta)
            found[threads, size] = torch.cat(parts)
    assert all(torch.equal(other, found[1, 1]) for other in found.values())


@pytest.mark.parametrize("kind", ["linear", "two-layer"])
def test_models_on_test_sets(kind: str) -> None:
    model = model_of(kind, 33, 3)
    theta = problems.normal(USERS, model.dim, seed=problems.generator(5)).float()
    users = users_of(33, 33, "softmax", 3)
    own = OwnPoints(users, torch.float32, torch.device("cpu"))
    common = SharedPoints(users[0].features.float(), users[0].labels)
    for threads in (1, 2):
        with thread_limit(threads), one_thread():
            scores, answers = common.scores(model, theta), own.squared_error(model, theta)
            for n in range(USERS):
                one = theta[n : n + 1].clone()
                assert torch.equal(common.scores(model, one)[0], scores[n])
                alone = OwnPoints(users[n : n + 1], torch.float32, torch.device("cpu"))
                assert alone.squared_error(model, one)[0] == answers[n]


RUNS: Mapping[str, Mapping[str, Any]] = {
    "linear": {"dataset": "synthetic-linear", "features": 33},
    "logistic": {"dataset": "synthetic-logistic", "features": 33},
    "softmax": {"dataset": "digits"},
    "two-layer": {"dataset": "digits", "model": "two-layer"},
    "cnn": {"dataset": "digits", "model": "cnn"},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("coupling", ["l2", "squared-l2"])
@pytest.mark.parametrize("name", RUNS)
def test_whole_runs(name: str, coupling: str, dtype: str) -> None:
    """33 points a user: rho of every round on 1, 2, 4 and 11 nodes, with 1 and 2 threads."""
    keys = {
        "users": 11,
        "points_per_user": "33,17",
        "strategic_users": "10",
        "local_solver": "adam",
        "regularizer": coupling,
        "rounds": 3,
        "dtype": dtype,
        **RUNS[name],
    }
    config = configure(**keys)
    found = {}
    for threads in (1, 2):
        for nodes in (1, 2, 4, 11) if threads == 2 else (11,):
            with thread_limit(threads):
                found[threads, nodes] = trajectory(play(config, nodes=nodes))
    first = found[1, 11]
    assert not torch.equal(first[0], first[-1])
    assert all(torch.equal(other, first) for other in found.values()), list(found)


def test_products_are_those_of_plain_matrices() -> None:
    draw = problems.generator(7)
    for rows, inner, columns in ((3, 5, 7), (1, 33, 1), (40, 50, 60)):
        left = problems.normal(4, rows, inner, seed=draw)
        right = problems.normal(4, inner, columns, seed=draw)
        turned = right.mT.contiguous()
        problems.close(aligned.product(left, right), left @ right, 1e-13, 1e-13)
        problems.close(aligned.product(left, turned, transposed=True), left @ right, 1e-13, 1e-13)
        right = aligned.aligned(right)
        begins = [row.data_ptr() % aligned.LINE for row in aligned.product(left, right)]
        assert begins == [0] * 4


def test_what_a_task_shares_is_done_where_it_stands() -> None:
    def task(number: int) -> Tensor:
        inner = each(lambda n: torch.tensor([n, torch.get_num_threads()]), [(1,), (2,)])
        return torch.cat([torch.tensor([number]), *inner])

    with thread_limit(3):
        found = each(task, [(n,) for n in range(5)])
        assert torch.get_num_threads() == 3
    assert torch.stack(found).tolist() == [[n, 1, 1, 2, 1] for n in range(5)]


def test_a_forked_process_makes_threads_of_its_own() -> None:
    """A pool that was kept is not there: the child would wait for ever."""
    with thread_limit(2):
        each(lambda n: torch.tensor(n), [(0,), (1,)])
        child = os.fork()
        if child == 0:
            found = each(lambda n: torch.tensor(n), [(n,) for n in range(4)])
            os._exit(0 if [int(n) for n in found] == [0, 1, 2, 3] else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize(
    ("name", "outputs"), [("softmax", 10), ("softmax", 3), ("logistic", 1), ("least-squares", 1)]
)
def test_a_points_bits_do_not_depend_on_where_it_is(
    name: str, outputs: int, dtype: torch.dtype
) -> None:
    draw, loss = problems.generator(8), LOSSES[name]()
    scores, direction = (
        problems.normal(1003, outputs, seed=draw).to(dtype).mul_(3) for _ in range(2)
    )
    labels = torch.randint(max(outputs, 2), (1003,), generator=draw)
    labels = labels if name == "softmax" else (2 * labels - 1).to(dtype)
    whole = loss.values(scores, labels), loss.gradient(scores, labels)
    curved = loss.curvature(scores, direction)
    for size in (1, 7, 33, 500):
        some = [slice(first, first + size) for first in range(0, 1003, size)]
        values = torch.cat([loss.values(scores[part], labels[part]) for part in some])
        slopes = torch.cat([loss.gradient(scores[part], labels[part]) for part in some])
        bent = torch.cat([loss.curvature(scores[part], direction[part]) for part in some])
        for found, expected in zip((values, slopes, bent), (*whole, curved), strict=True):
            assert torch.equal(found, expected)
