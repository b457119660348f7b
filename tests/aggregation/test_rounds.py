"""Rules that see users and rounds: their laws, what they remember, and checkpoints of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from pfl_flower.aggregation.combination import OfRound, RunningRule, combine
from pfl_flower.aggregation.rounds import Received, form_fault
from pfl_flower.aggregation.rows import Rows
from pfl_flower.aggregation.rules import bind, centred_clipping, trimmed_mean
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.data.users import Partitioned
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import build_problem
from pfl_flower.run.server_setup import ServerSetup, public_rule
from pfl_flower.run.trial import try_plugins
from pfl_flower.support.errors import ConfigError, DataError
from pfl_flower.support.seeding import generator
from strategies.checkpoint_facts import Form, check_arrays
from strategies.checkpoint_loading import Expected
from tests.support.runs import configure, play, trajectory

NAMES = [name for name, row in AGGREGATIONS.items() if row.rounds]
USERS, DIM, F = 11, 6, 2
OWN = torch.tensor([1.0, 1.0, 0.5, 2.0, 1.0, 1.0], dtype=torch.float64)


class Given(ServerSetup):
    """A server whose own user reports a given row."""

    scale = 1.0

    def root(self, rho: Tensor, theta: Tensor, points: int, round: int) -> tuple[Tensor, Tensor]:
        return self.scale * OWN, theta + 1


def running(name: str, *, scale: float = 1.0, mixing: bool = False, **options: Any) -> RunningRule:
    import json

    config = configure(
        users=USERS,
        strategic_users="9,10",
        aggregation=name,
        aggregation_mixing=mixing,
        aggregation_options=json.dumps(options) if options else "",
    )
    setup = Given(build_problem(config))
    object.__setattr__(setup, "scale", scale)
    return RunningRule(config, setup, torch.zeros(DIM, dtype=torch.float64))


def sample(seed: int, count: int = USERS) -> Rows:
    draw = generator(seed, "rows of rounds")
    rows = 1 + torch.randn((count, DIM), generator=draw, dtype=torch.float64)
    return Rows(torch.arange(count), rows)


def directions(rule: RunningRule, rounds: list[Rows], first: int = 1) -> list[Tensor]:
    found, rho = [], torch.zeros(DIM, dtype=torch.float64)
    for number, rows in enumerate(rounds, first):
        one = rule.at(number, rho)
        assert isinstance(one, OfRound)
        direction, kept, _ = combine(rows, rho, 0.1, one)
        rule.remember(one, kept)
        found.append(direction)
    return found


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_order_in_which_rows_come_does_not_matter(name: str, mixing: bool) -> None:
    order = torch.randperm(USERS, generator=generator(1, "order"))
    rounds = [sample(1), sample(2)]
    mixed_up = [Rows(rows.users[order], rows.values_by_user[order]) for rows in rounds]
    for one, other in zip(
        directions(running(name, mixing=mixing), rounds),
        directions(running(name, mixing=mixing), mixed_up),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 64.0, 1e150])
@pytest.mark.parametrize("name", NAMES)
def test_a_scale_of_all_rows_scales_the_direction(name: str, scale: float) -> None:
    rounds = [sample(3), sample(4)]
    scaled = [Rows(rows.users, scale * rows.values_by_user) for rows in rounds]
    plain = directions(running(name), rounds)
    for one, other in zip(plain, directions(running(name, scale=scale), scaled), strict=True):
        torch.testing.assert_close(other / scale, one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fltrust"])
def test_on_equal_rows_a_first_round_is_the_sum(name: str) -> None:
    rows = Rows(torch.arange(USERS), sample(5).values_by_user[:1].expand(USERS, -1))
    (found,) = directions(running(name), [rows])
    torch.testing.assert_close(found, rows.values_by_user.sum(dim=0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("sent", [1e12, -1e12, 1e307, 1.7e308, 5e-324, 0.0])
@pytest.mark.parametrize("name", NAMES)
def test_f_rows_do_not_take_the_direction_away(name: str, sent: float) -> None:
    rows = sample(6)
    rows.values_by_user[:F] = sent
    honest = rows.values_by_user[F:]
    (found,) = directions(running(name), [rows])
    mean = honest.mean(dim=0)
    spread = torch.linalg.vector_norm(honest - mean, dim=1).max()
    assert found.isfinite().all()
    assert torch.linalg.vector_norm(found / USERS - mean) <= 2 * spread + mean.norm()


def test_dnc_is_what_its_singular_vector_says() -> None:
    rows = sample(7)
    rows.values_by_user[[2, 8]] += 50 * OWN
    (found,) = directions(running("dnc"), [rows])
    kept = [i for i in range(USERS) if i not in (2, 8)]
    torch.testing.assert_close(found, USERS * rows.values_by_user[kept].mean(dim=0))
    values = rows.values_by_user.numpy()
    centred = values - values.mean(axis=0)
    outlying = (centred @ np.linalg.svd(centred)[2][0]) ** 2
    assert set(np.argsort(outlying)[-2:]) == {2, 8}


def test_rows_that_stick_out_alike_share_the_place() -> None:
    rows = torch.zeros((5, DIM), dtype=torch.float64)
    rows[0, 0], rows[1, 0], rows[2, 1], rows[3, 1] = 9.0, -9.0, 9.0, -9.0
    rule = RunningRule(
        configure(aggregation="dnc", aggregation_tolerance=1),
        Given(build_problem(configure())),
        torch.zeros(DIM, dtype=torch.float64),
    )
    (found,) = directions(rule, [Rows(torch.arange(5), rows)])
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-9)


def test_buckets_are_dealt_anew_each_round_and_again_alike() -> None:
    rows = sample(8)
    one, other = directions(running("bucketing"), [rows, rows])
    assert not torch.equal(one, other)
    assert torch.equal(directions(running("bucketing"), [rows], first=2)[0], other)
    single = directions(running("bucketing", size=1), [rows])[0]
    expected = bind(trimmed_mean, tolerance=F)(rows.values_by_user)
    torch.testing.assert_close(single, expected, rtol=1e-12, atol=0)
    whole = directions(running("bucketing", size=USERS, then="sum"), [rows])[0]
    torch.testing.assert_close(whole, rows.values_by_user.sum(dim=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (2, None),
        (3, 'aggregation-tolerance = "": expected 0 to 1, for 11 users and this aggregation'),
        (20, "users = 11: expected at least 81, for an aggregation that withstands 2 of them"),
    ],
)
def test_buckets_must_be_enough_for_the_rule_that_follows(size: int, said: str | None) -> None:
    keys = {
        "users": 11,
        "strategic-users": "9,10",
        "aggregation": "bucketing",
        "aggregation-options": f'{{"size": {size}}}',
    }
    if said is None:
        assert parse_config(keys).tolerance() == 2
        return
    with pytest.raises(ConfigError) as refused:
        parse_config(keys)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("then", ["bucketing", "static-clipping", "dnc", "nothing"])
def test_what_cannot_follow_is_one_line(then: str) -> None:
    with pytest.raises(ConfigError, match=f'then = "{then}": expected one of sum, median'):
        parse_config({"aggregation": "bucketing", "aggregation-options": f'{{"then": "{then}"}}'})


def test_trust_follows_the_servers_own_user() -> None:
    """Against a loop, and with a root data set that is drawn and solved for as a user's."""
    rows = sample(9)
    rows.values_by_user[3] = -OWN
    (found,) = directions(running("fltrust"), [rows])
    total, weights = torch.zeros(DIM, dtype=torch.float64), 0.0
    for row in rows.values_by_user:
        trust = max(0.0, float(row @ OWN / (row.norm() * OWN.norm())))
        total, weights = total + trust * OWN.norm() * row / row.norm(), weights + trust
    torch.testing.assert_close(found, USERS * total / weights)
    against = Rows(torch.arange(3), -OWN.expand(3, -1))
    assert not directions(running("fltrust"), [against])[0].any()


@pytest.mark.parametrize("solver", ["exact", "sgd"])
def test_the_servers_own_user_is_an_honest_one(solver: str) -> None:
    problem = build_problem(configure(local_solver=solver))
    setup, rho = ServerSetup(problem), problem.initial
    report, theta = setup.root(rho, rho, 50, 1)
    torch.testing.assert_close(report, problem.regularizer.grad_rho(rho, theta))
    again, _ = setup.root(rho, rho, 50, 1)
    assert torch.equal(report, again)
    assert float(report.norm()) > 0


def test_where_all_points_are_dealt_the_servers_own_are_some_that_users_train_on() -> None:
    keys = {"partition": "dirichlet", "partition_alpha": 0.3, "label_noise": 0.5}
    users = {"dataset": "digits", "users": 5, "strategic_users": "4", "points_per_user": ""}
    source = build_problem(configure(**users, **keys)).source
    assert isinstance(source, Partitioned)
    trained = torch.cat([source.draw(user, source.size(user), 1).features for user in range(5)])
    own = source.shared(60, generator(1, "root", 0))
    among = (own.features[:, None] == trained[None]).all(dim=2).any(dim=1)
    points, labels = source.stored()["training"]
    told = (own.features[:, None, :-1] == points[None]).all(dim=2).int().argmax(dim=1)
    assert bool(among.all()) and torch.equal(own.labels, labels[told])
    again, others = (source.shared(60, generator(1, "root", who)) for who in (0, 1))
    assert torch.equal(own.features, again.features)
    assert not torch.equal(own.features, others.features)
    with pytest.raises(DataError, match="points = 9999: expected <= "):
        source.shared(9999, generator(1, "root", 0))
    run = play(configure(**users, **keys, aggregation="fltrust", rounds=2))
    assert torch.isfinite(trajectory(run)).all()


def test_history_is_momenta_about_the_last_centre() -> None:
    beta, rounds = 0.7, [sample(10), sample(11, 8), sample(12)]
    found = directions(running("history-clipping", beta=beta), rounds)
    momenta: dict[int, Tensor] = {}
    centre = torch.zeros(DIM, dtype=torch.float64)
    for rows, direction in zip(rounds, found, strict=True):
        for user, row in rows.items():
            momenta[user] = beta * momenta[user] + (1 - beta) * row if user in momenta else row
        away = torch.stack([momenta[user] for user in rows]) - centre
        reach = away.norm(dim=1).sort().values[(len(rows) - 1) // 2]
        centre = centre + torch.stack([z * min(1.0, reach / z.norm()) for z in away]).mean(dim=0)
        torch.testing.assert_close(direction, len(rows) * centre, rtol=1e-12, atol=1e-12)


def test_a_round_without_rows_leaves_the_memory() -> None:
    rule = running("history-clipping")
    directions(rule, [sample(13)])
    before = rule.memory()
    directions(rule, [Rows.none()])
    assert all(torch.equal(before[name], value) for name, value in rule.memory().items())


@pytest.mark.parametrize("name", ["history-clipping", "fltrust", "bucketing", "dnc"])
def test_nodes_do_not_matter_and_a_checkpoint_goes_on(name: str, tmp_path: Path) -> None:
    from pfl_flower import client_app, server_app
    from pfl_flower.transport.inprocess import run_in_process

    keys = {"aggregation": name, "strategic_users": "4", "local_solver": "sgd", "rounds": 6}
    whole = trajectory(play(configure(**keys), nodes=1))
    assert torch.equal(whole, trajectory(play(configure(**keys), nodes=5)))
    kept = {**keys, "checkpoint_every": 3, "output_dir": str(tmp_path), "name": "run"}
    for rounds, resume in ((3, ""), (6, "auto")):
        config = configure(**{**kept, "rounds": rounds, "resume": resume})
        run_in_process(server_app.app, client_app.app, nodes=2, run_config=config.flat())
    with np.load(tmp_path / "run" / "limit.npz") as found:
        np.testing.assert_array_equal(found["rho"], whole[-1].numpy())


MEMORY = {"aggregation/momenta": np.zeros((3, 2)), "aggregation/met": np.zeros(3, dtype=bool)}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"aggregation/momenta": np.zeros((3, 1))}, "aggregation/momenta is wrong"),
        ({"aggregation/momenta": np.full((3, 2), np.nan)}, "aggregation/momenta is wrong"),
        ({"aggregation/met": np.zeros(3)}, "aggregation/met is wrong"),
        ({"aggregation/more": np.zeros(3)}, "aggregation/more is nothing that this run keeps"),
        ({"aggregation/met": None}, "aggregation/met is absent"),
    ],
)
def test_a_memory_of_another_form_is_refused(changed: dict[str, Any], said: str) -> None:
    forms = {name: Form(value.dtype, value.shape) for name, value in MEMORY.items()}
    arrays = {name: value for name, value in {**MEMORY, **changed}.items() if value is not None}
    with pytest.raises(Exception, match=said):
        check_arrays(arrays, forms)
    check_arrays(MEMORY, forms)


def test_a_checkpoint_must_fit_what_the_rule_starts_with() -> None:
    config = configure(aggregation="history-clipping")
    expected = Expected.of(build_problem(config), ())
    assert set(expected.arrays()) == {f"aggregation/{one}" for one in ("momenta", "met", "centre")}
    assert expected.arrays()["aggregation/momenta"].shape[0] == config.users


class Kept(NamedTuple):
    last: Tensor


class Halved:
    """Half of this round, half of the last direction."""

    wrong = ""

    def __init__(self, setup: Any, *, share: float = 0.5) -> None:
        self.share = share

    def init(self, rho: Tensor) -> Kept:
        return Kept(torch.zeros_like(rho))

    def update(self, state: Kept, received: Received) -> tuple[Tensor, Kept]:
        direction = self.share * received.rows.sum(dim=0) + (1 - self.share) * state.last
        return direction, Kept(direction)


class Growing(Halved):
    def update(self, state: Kept, received: Received) -> tuple[Tensor, Kept]:
        return received.rows.sum(dim=0), Kept(torch.cat([state.last, state.last]))


class Forgetful(Halved):
    def update(self, state: Kept, received: Received) -> Any:
        return received.rows.sum(dim=0)


class Listed(Halved):
    def init(self, rho: Tensor) -> Any:
        return [rho]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("Growing", "expected a state whose last is of shape"),
        ("Forgetful", "expected an update that returns a direction and a state"),
        ("Listed", "expected a state that is a NamedTuple of tensors, and it is a list"),
    ],
)
def test_a_class_of_ones_own_is_tried(rule: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        try_plugins(build_problem(configure(aggregation=f"{__name__}:{rule}")))


def test_a_class_of_ones_own_remembers() -> None:
    config = configure(aggregation=f"{__name__}:Halved", aggregation_options='{"share": 0.25}')
    try_plugins(build_problem(config))
    records = play(config)
    last = torch.zeros_like(records[0].rho)
    rho = build_problem(config).initial
    for record in records:
        last = 0.25 * record.accepted.values_by_user.sum(dim=0) + 0.75 * last
        rho = rho - record.eta * last
        torch.testing.assert_close(record.rho, rho, rtol=1e-12, atol=1e-14)


def test_form_faults_are_told() -> None:
    one = {"a": torch.zeros(2), "b": torch.zeros(1, dtype=torch.int64)}
    assert not form_fault(one, {**one, "a": torch.ones(2)})
    assert "of a, b, and it is of a" in form_fault(one, {"a": torch.zeros(2)})
    assert "finite" in form_fault(one, {**one, "a": torch.full((2,), torch.inf)})
    assert "torch.float64" in form_fault(one, {**one, "b": torch.zeros(1).double()})


@pytest.mark.parametrize("name", [*NAMES, "krum"])
def test_an_attacker_works_the_rule_out_with_draws_of_its_own(name: str) -> None:
    problem = build_problem(configure(aggregation=name, users=USERS, strategic_users="9,10"))
    rows = sample(14).values_by_user
    guessed = public_rule(problem)(rows)
    rule = RunningRule(problem.config, ServerSetup(problem), problem.initial).at(1, problem.initial)
    true = rule.direction(sample(14)) if isinstance(rule, OfRound) else rule(rows)
    # What is drawn, or is the server's alone, is another; what hangs on the rows alone is not.
    assert torch.equal(guessed, true) == (name not in ("bucketing", "fltrust"))


def test_where_there_are_no_rounds_a_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a rule of rows alone"):
        bind(AGGREGATIONS.load("fltrust"), tolerance=1)
    assert callable(bind(centred_clipping, tolerance=1))
