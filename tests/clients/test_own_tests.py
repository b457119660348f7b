"""Own test sets: what is measured, by whom, and that nodes do not matter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

import pfl_flower as pfl
from clients.own_tests import judged_alone, learned_alone
from pfl_flower.client_app import app as client_app
from pfl_flower.data.sources import Images
from pfl_flower.data.spec import DataSpec
from pfl_flower.data.table import PARTITIONS
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.run.served import Served
from pfl_flower.support.seeding import generator
from pfl_flower.transport.broadcasts import pack_rho
from pfl_flower.transport.inprocess import InProcessGrid
from pfl_flower.transport.node_metrics import METRICS, NodeMetrics
from strategies.parameter_server import ParameterServer

HERE = f"{__name__}:"
DATA = "tests.data.test_partitions:"
FEW = {"users": 6, "strategic_users": "5", "rounds": 2, "evaluate_every": 1, "nu": 0.1}


def written(spec: DataSpec, *, writers: int = 12) -> Images:
    """Return three hundred points of four classes that overlap, each of one of some writers."""
    draw = generator(1, "written")
    labels = torch.randint(4, (400,), generator=draw)
    features = torch.randn((400, 6), generator=draw, dtype=torch.float64)
    features[torch.arange(400), labels] += 1.5
    return Images(
        (features[:300], labels[:300]),
        (features[300:], labels[300:]),
        owners=[number % writers for number in range(300)],
        label_noise=spec.label_noise,
        seed=spec.seed,
    )


def problem(**keys: Any) -> Problem:
    asked = {"dataset": HERE + "written", **FEW, **keys}
    return build_problem(parse_config({k.replace("_", "-"): v for k, v in asked.items()}))


NAMES = [*(name for name, row in PARTITIONS.items() if row.reads), DATA + "evens_and_odds"]


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_matter_to_the_last_bit(name: str) -> None:
    keys = {"dataset": HERE + "written", "partition": name, "save_trajectory": True, **FEW}
    runs = [pfl.run(**keys, nodes=nodes) for nodes in (1, 4, 11)]
    assert len({run.trajectory.tobytes() for run in runs}) == 1  # type: ignore[union-attr]
    assert len({run.users_text for run in runs}) == 1
    users = runs[0].users
    assert users["role"].tolist() == ["honest"] * 5 + ["strategic"]
    assert np.isfinite(users["theta"][:5]).all()
    assert np.isfinite(users["alone"][:5]).all()
    assert np.isnan(users["theta"][5])
    final, metrics = runs[0].rounds, runs[0].metrics
    for model in ("theta", "rho", "alone"):
        assert final[f"own_{model}_mean"][-1] == pytest.approx(users[model][:5].mean())
        assert metrics[f"own_{model}_worst"] == users[model][:5].min()
    assert math.isnan(final["own_theta_mean"][0])
    assert runs[0].summary["own_test_sets"] == {"measure": "accuracy", "users": 6, "measured": 5}


@pytest.mark.parametrize(
    "keys",
    [
        {"local_solver": "sgd", "batch_size": 4, "local_steps": 2},
        {"local_solver": "adam", "model": "two-layer", "hidden": 4},
        {"regularizer": "l2", "chunk_users": 2},
        {"dataset": DATA + "Line", "partition": "natural", "local_solver": "sgd", "local_lr": 1e-9},
        {"reduction": "mean", "attack": "label-flip"},
        {"reduction": "scaled-sum", "participation": 0.5, "label_noise": 0.3},
    ],
    ids=lambda keys: "-".join(str(value) for value in keys.values())[-40:],
)
def test_nor_do_they_for_other_users_and_models(keys: dict[str, Any]) -> None:
    keys = {"dataset": HERE + "written", "partition": "similarity", **FEW, **keys}
    runs = [pfl.run(**keys, nodes=nodes) for nodes in (1, 4, 11)]
    assert len({run.users_text for run in runs}) == 1
    assert len({run.rho.tobytes() for run in runs}) == 1
    assert np.isfinite(runs[0].users["alone"][:5]).all()


def test_models_are_judged_on_their_own_users_points() -> None:
    """Against the bare data: theta_n of the last round, rho, and the minimiser of L_n."""
    run = pfl.run(dataset=HERE + "written", partition="shards", **FEW, nodes=2)
    found = problem(partition="shards")
    rho = torch.from_numpy(run.rho)
    theta = learned_alone(found, tuple(range(5)))
    assert theta is not None
    gradient = found.population(tuple(range(5))).gradient(theta)
    assert float(gradient.abs().max()) < 1e-8
    for user in range(5):
        tests = found.source.own_tests(user)
        assert tests is not None
        for name, model in (("rho", rho), ("alone", theta[user])):
            answers = (tests.features @ model.view(4, -1).T).argmax(dim=1)
            right = float((answers == tests.labels).double().mean())
            assert run.users[name][user] == right, (name, user)
        assert run.users["tests"][user] == len(tests.labels)
        assert run.users["train"][user] == found.size(user)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_alone_is_the_runs_optimiser_without_the_others(solver: str) -> None:
    """As good as a run in which the coupling all but vanishes, step for step."""
    keys = {"local_solver": solver, "batch_size": 3, "partition": "similarity", "rounds": 5}
    free = pfl.run(**{"dataset": HERE + "written", **FEW, **keys, "lam": 1e-13, "server_lr": 1e-9})
    assert free.users["theta"][:5].tolist() == free.users["alone"][:5].tolist()
    found = problem(**keys)
    theta, weak = (learned_alone(one, (0, 3)) for one in (found, problem(**keys, lam=1e-13)))
    assert theta is not None
    assert weak is not None
    assert torch.equal(theta, weak)
    assert not torch.equal(theta, found.local_start((0, 3)))


def test_without_a_minimiser_or_a_converged_solve_nothing_is_claimed() -> None:
    keys = {"dataset": HERE + "written", "partition": "similarity", **FEW}
    for more in ({"nu": 0.0}, {"nu": 1e-4, "solver_iterations": 1}):
        run = pfl.run(**{**keys, **more})
        assert not set(run.metrics) & {"own_alone_mean", "own_gain_over_alone"}
        assert np.isfinite(run.users["theta"][:5]).all()
        said = next(one for one in run.left_out if "learned alone" in one.what)
        assert (said.count, said.where) == (5, "user 0, user 1, user 2, ...")
    values = judged_alone(problem(partition="similarity", test_share=0.0), (0, 1))
    assert values.isnan().all()


def test_draws_are_measured_as_they_were_and_rho_stays_at_home() -> None:
    asked: list[str] = []

    def spy(message: Message, context: Any) -> Message:
        kind, told = message.metadata.message_type, message.content
        if kind == "train":
            asked.append("measured" if told["config"].get("measured") else "")
        if kind == "evaluate":
            asked.append("rho" if "arrays" in told else "no rho")
        return client_app(message, context)

    for partition in ("draws", "similarity"):
        points = {"points_per_user": "40"} if partition == "draws" else {}
        found = problem(partition=partition, rounds=1, **points)
        grid = InProcessGrid(spy, nodes=2, run_config=found.config.flat())
        server = ParameterServer(found)
        server.recruiter.settle = 0.0
        server.start(grid, pack_rho(found.initial), num_rounds=1)
        assert server.record is not None
        assert bool(server.record.served) == (partition == "similarity")
        assert len(server.record.accuracies) == 5
    # Models on the common test set with the reports; on one's own once the round's rho is there.
    assert asked == ["measured", "", "", "", "rho"]
    run = pfl.run(dataset=HERE + "written", points_per_user=40, **FEW)
    assert len(run.users) == 0
    assert not any(name.startswith("own_") for name in (*run.metrics, *run.rounds))
    assert "own_" not in run.text.splitlines()[0]


def test_attackers_models_are_not_measured() -> None:
    keys = {"dataset": HERE + "written", "partition": "dirichlet", **FEW, "strategic_users": "0,3"}
    for attack in ("cga", "label-flip", "data"):
        users = pfl.run(**{**keys, "attack": attack}).users
        measured = np.isfinite(users["theta"]).tolist()
        assert measured == [False, True, True, False, True, True]
        assert (users["train"] > 0).all()


SAID = NodeMetrics(
    served={
        0: Served(train=9, tests=2, theta=1.0, rho=0.5, alone=0.5),
        1: Served(train=8, tests=2, theta=0.5, rho=0.0),
    }
)
LIES: dict[str, tuple[dict[str, list[Any]], set[int]]] = {
    "nothing": ({}, {0, 1}),
    "above 1": ({"served-theta": [1.5, 0.5]}, {1}),
    "rho above 1": ({"served-rho": [0.5, 1e9]}, {0}),
    "alone above 1": ({"served-alone": [2.0]}, {1}),
    "negative": ({"served-rho": [-0.5, 0.0]}, set()),
    "nan": ({"served-theta": [1.0, math.nan]}, set()),
    "infinite": ({"served-alone": [math.inf]}, {0, 1}),
    "no test points": ({"served-tests": [2, 0]}, {0}),
    "negative points": ({"served-train": [-1, 8]}, set()),
    "fractions of points": ({"served-train": [0.5, 8.0]}, set()),
    "another's user": ({"served-users": [0, 7]}, {0}),
    "one user twice": ({"served-users": [0, 0]}, {0}),
    "too many users": ({"served-users": [0, 1, 2]}, {0, 1}),
    "too few numbers": ({"served-rho": [0.5]}, {0}),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_node_says_is_bounded_and_what_is_not_is_counted(lie: str) -> None:
    changed, left = LIES[lie]
    record = SAID.pack()
    for key, values in changed.items():
        record[key] = values
    heard = NodeMetrics.unpack(RecordDict({METRICS: record}), range(5))
    assert set(heard.served) == left
    assert (heard.absurd == 0) == (lie == "nothing")
    if lie == "nothing":
        assert heard.served == SAID.served
    if lie == "infinite":
        assert heard.served[0].alone is None


def test_an_error_may_be_above_1() -> None:
    record = SAID.pack()
    record["served-rho"] = [40.0, 0.0]
    heard = NodeMetrics.unpack(RecordDict({METRICS: record}), (0, 1), most=1e30)
    assert heard.served[0].rho == 40


def test_a_run_keeps_its_users_in_a_file_and_two_pictures(tmp_path: Path) -> None:
    run = pfl.run(dataset=HERE + "written", partition="shards", output=tmp_path / "a", **FEW)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"users.csv", "users.png", "users.pdf", "holdings.png"} <= names
    again = pfl.load(tmp_path / "a")
    assert isinstance(again, pfl.Result)
    assert (
        again.users_text == run.users_text == ((tmp_path / "a" / "users.csv").read_bytes().decode())
    )
    again.save(tmp_path / "b")
    assert pfl.load(tmp_path / "b").users["theta"].shape == (6,)  # type: ignore[union-attr]


def test_a_fresh_process_learns_alone_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model learned alone came to is in the node's state, which outlives its processes."""
    from clients import honest

    calls = []
    honest_alone = honest.judged_alone

    def counted(problem: Problem, users: tuple[int, ...]) -> torch.Tensor:
        calls.append(users)
        return honest_alone(problem, users)

    monkeypatch.setattr(honest, "judged_alone", counted)
    pfl.run(dataset=HERE + "written", partition="shards", **{**FEW, "rounds": 4}, nodes=2)
    assert len(calls) == len(set(calls))


@pytest.mark.slow
def test_a_run_that_is_resumed_ends_with_the_same_users(tmp_path: Path) -> None:
    keys = {"dataset": HERE + "written", "partition": "shards", **FEW, "checkpoint_every": 2}
    whole = pfl.run(**{**keys, "rounds": 4}, output=tmp_path / "whole")
    pfl.run(**{**keys, "rounds": 2}, output=tmp_path / "parts")
    rest = pfl.run(**{**keys, "rounds": 4}, resume="auto", output=tmp_path / "parts", nodes=3)
    assert rest.users_text == whole.users_text
    assert rest.rounds["own_theta_std"].tolist()[1:] == whole.rounds["own_theta_std"].tolist()[1:]


@pytest.mark.parametrize(("name", "better"), [("linear", min), ("logistic", max)])
def test_synthetic_users_have_as_many_tests_of_their_own_as_asked(name: str, better: Any) -> None:
    """Answered by their own models, clean and without moving what is drawn to train on."""
    keys: dict[str, Any] = {"dataset": f"synthetic-{name}", "points_per_user": "40", **FEW}
    keys |= {"label_noise": 0.2, "features": 4, "save_trajectory": True}
    options = {"spread": 3.0}
    plain = pfl.run(**keys, dataset_options=options)
    tested = pfl.run(**keys, dataset_options={**options, "tests": 200})
    assert np.array_equal(plain.trajectory, tested.trajectory)  # type: ignore[arg-type]
    assert len(plain.users) == 0 and tested.users["tests"][:5].tolist() == [200] * 5
    own, common = tested.metrics["own_theta_mean"], tested.metrics["own_rho_mean"]
    assert better(own, common) == own != common
    source = problem(dataset=f"synthetic-{name}", dataset_options='{"tests": 300}').source
    assert source.tested
    sets = [source.own_tests(user) for user in (0, 0, 1)]
    features = [one.features for one in sets if one is not None]
    assert torch.equal(features[0], features[1]) and not torch.equal(features[0], features[2])
    if name == "linear":
        model = source.preferred(0)  # type: ignore[attr-defined]
        off = sets[0].labels - features[0] @ model  # type: ignore[union-attr]
        assert off.std() == pytest.approx(0.1, rel=0.2), "noise of answers alone"
