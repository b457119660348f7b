"""A sample of the users in each round, chunks of a node's users, and CGA under both."""

from __future__ import annotations

import pytest
import torch

from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.cga import CounterGradient
from pfl_flower.run.problem import build_problem
from strategies.parameter_server import ParameterServer
from strategies.round_record import RoundRecord
from tests.support.runs import configure, play, trajectory

MANY = {"users": 30, "points_per_user": "7,5,9", "strategic_users": "none", "rounds": 4}
SOLVERS = ["exact", "adam", "sgd"]


def asked(records: list[RoundRecord]) -> list[list[int]]:
    return [list(record.accepted) for record in records]


def distances(records: list[RoundRecord]) -> list[float]:
    target = build_problem(configure()).target
    return [float(torch.linalg.vector_norm(record.rho - target)) for record in records]


def test_each_round_asks_a_sample_of_its_own() -> None:
    samples = asked(
        play(configure(**{**MANY, "rounds": 20}, participation=0.3, local_solver="sgd"), nodes=3)
    )
    assert {len(users) for users in samples} == {9}
    assert len({tuple(users) for users in samples}) == 20
    counts = torch.bincount(torch.tensor(samples).reshape(-1), minlength=30)
    assert counts.min() >= 1
    assert counts.max() <= 14
    again = asked(play(configure(**{**MANY, "rounds": 3}, participation=0.3), nodes=1))
    other = asked(play(configure(**{**MANY, "rounds": 3}, participation=0.3, seed=2), nodes=1))
    assert again == samples[:3] != other


@pytest.mark.parametrize(("fraction", "size"), [(0.02, 1), (0.05, 2), (0.98, 29)])
def test_a_sample_is_a_whole_number_of_users(fraction: float, size: int) -> None:
    records = play(configure(**{**MANY, "rounds": 2}, participation=fraction), nodes=3)
    assert [len(record.accepted) for record in records] == [size, size]
    assert records[0].rho.any()


class Counting(ParameterServer):
    """Asks everybody by name, as a strategy of one's own would."""

    def participants(self, round: int) -> frozenset[int]:
        return frozenset(range(self.problem.config.users))


@pytest.mark.parametrize("solver", SOLVERS)
def test_full_participation_is_the_plain_run_to_the_bit(solver: str) -> None:
    plain = trajectory(play(configure(local_solver=solver)))
    keys = {"participation": 1.0, "participation_rescale": True}
    for strategy in (ParameterServer, Counting):
        records = play(configure(local_solver=solver, **keys), strategy=strategy)
        assert torch.equal(trajectory(records), plain)


@pytest.mark.parametrize(
    ("solver", "batch"), [("exact", 0), ("adam", 0), ("adam", 4), ("sgd", 0), ("sgd", 4)]
)
def test_samples_do_not_depend_on_the_nodes(solver: str, batch: int) -> None:
    """Users who are not asked keep their models and their optimisers' states."""
    keys = {**MANY, "local_solver": solver, "batch_size": batch, "participation": 0.4}
    runs = [
        trajectory(play(configure(**{**keys, "rounds": 6}), nodes=nodes)) for nodes in (1, 4, 30)
    ]
    assert runs[0].abs().max() > 1e-3
    for other in runs[1:]:
        assert (other - runs[0]).abs().max() <= 1e-9


def test_adams_state_is_the_users_own() -> None:
    """A user's first step is a sign whatever the round in which it is first asked."""
    keys = {**MANY, "local_solver": "adam", "participation": 0.1, "local_lr_decay": 1.0}
    met: set[int] = set()
    rho = torch.zeros(6, dtype=torch.float64)
    for record in play(configure(**{**keys, "rounds": 6}, local_lr=0.02), nodes=1):
        for user, row in record.accepted.items():
            theta = rho - row / 2
            first = torch.allclose(theta.abs(), torch.full_like(row, 0.02), rtol=1e-4)
            assert first == (user not in met)
            met.add(user)
        rho = record.rho
    assert 3 < len(met) < 18


@pytest.mark.parametrize("regularizer", ["squared-l2", "l2"])
def test_rescaling_multiplies_the_sum_alone(regularizer: str) -> None:
    keys = {**MANY, "participation": 0.3, "regularizer": regularizer, "server_lr": 0.004}
    plain = play(configure(**keys), nodes=3)
    grown = play(configure(**keys, participation_rescale=True), nodes=3)
    assert asked(plain) == asked(grown)
    torch.testing.assert_close(grown[0].rho, plain[0].rho * 30 / 9, rtol=1e-12, atol=0)
    previous = torch.zeros_like(grown[0].rho)
    for record in grown:
        rows = torch.stack([record.accepted[user] for user in record.accepted])
        expected = previous - record.eta * (30 / 9) * rows.sum(dim=0)
        torch.testing.assert_close(record.rho, expected, rtol=1e-12, atol=1e-14)
        previous = record.rho


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_cga_estimates_the_samples_sum_whatever_it_is_scaled_by(scale: float) -> None:
    """It is asked in rounds 1, 2, 5 and 6; eta changes; the others' sum is constant."""
    draw = torch.Generator().manual_seed(1)
    others, target, rho = torch.randn((3, 4), generator=draw, dtype=torch.float64)
    attack, eta_sum, accepted = CounterGradient(target=target), 0.0, torch.zeros_like(rho)
    state = attack.init(rho)
    for t in range(1, 7):
        eta = 0.3 / t * scale
        if t in (1, 2, 5, 6):
            seen = Observation(round=t, rho=rho, eta=eta, eta_sum=eta_sum, accepted=accepted)
            if t > 1:
                assert torch.allclose(attack.estimate(state, seen), others, atol=1e-12)
            accepted, state = attack.update(state, seen)
            rho = rho - eta * (others + accepted)
            if t > 1:
                assert torch.allclose(rho, target, atol=1e-12)
        else:
            rho = rho - eta * others
        eta_sum += eta


ATTACKED = {"users": 10, "points_per_user": "12", "strategic_users": "9", "rounds": 40}


@pytest.mark.parametrize("rescale", [False, True])
def test_cga_holds_rho_near_the_target_of_squared_l2(rescale: bool) -> None:
    """Half of the users a round: how near is the step's size times the samples' spread.

    Rounds without the attacker let the honest users pull rho back; each round with it undoes that.
    """
    keys = {**ATTACKED, "participation": 0.5, "participation_rescale": rescale}
    ends = []
    for factor in (1.0, 0.01):
        records = play(configure(**keys, server_lr_factor=factor), nodes=2)
        after = [
            distance
            for distance, record in zip(distances(records), records, strict=True)
            if 9 in record.accepted and record.round > 15
        ]
        assert 6 < len(after) < 20
        ends.append(sum(after) / len(after))
    honest = distances(play(configure(**{**keys, "strategic_users": "none"}), nodes=2))
    assert ends[0] < 0.25 * honest[-1]
    assert ends[1] < ends[0] / 30


@pytest.mark.parametrize("missing", [0, 3])
def test_cga_reaches_the_target_when_the_sample_is_the_same(missing: int) -> None:
    """Five honest users and the attacker, who may miss every third round; rescaled sums."""

    class Six(ParameterServer):
        def participants(self, round: int) -> frozenset[int]:
            absent = missing and round % missing == 0
            return frozenset(range(5)) | (frozenset() if absent else {9})

    keys = {**ATTACKED, "participation": 0.6, "participation_rescale": True, "rounds": 41}
    found = distances(play(configure(**keys), nodes=2, strategy=Six))
    if missing:
        # Round 39 did not ask the attacker, rounds 40 and 41 did.
        assert found[-1] < 0.3 * found[-3]
    else:
        assert found[-1] < 1e-8


def test_a_coalition_of_which_some_are_asked_is_slower_and_no_more() -> None:
    keys = {**ATTACKED, "users": 12, "strategic_users": "8-11", "participation": 0.5}
    found = distances(play(configure(**keys, server_lr_factor=0.02), nodes=3))
    assert max(found[-10:]) < 0.05 * found[0] + 0.05


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_chunks_change_nothing(solver: str, participation: float) -> None:
    keys = {**MANY, "local_solver": solver, "participation": participation}
    whole = trajectory(play(configure(**keys), nodes=2))
    for size in (1, 4, 14):
        chunked = trajectory(play(configure(**keys, chunk_users=size), nodes=2))
        assert (chunked - whole).abs().max() <= 1e-12


def test_chunks_are_drawn_anew_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(**{**MANY, "rounds": 2}, chunk_users=4)
    problem, drawn = build_problem(config), []
    draw = problem.draw

    def counted(_: object, users: tuple[int, ...], *, compress: bool) -> object:
        assert compress == (config.local_solver == "exact"), "of use for more than one gradient"
        drawn.append(len(users))
        return draw(users, compress=compress)

    monkeypatch.setattr(type(problem), "draw", counted)
    play(config, nodes=2)
    assert drawn == [4, 4, 4, 3] * 4
    assert not len(problem.memo)


def test_data_poisoning_is_not_chunked() -> None:
    keys = {"attack": "data", "rounds": 4, "strategic_users": "3,4"}
    whole = trajectory(play(configure(**keys)))
    assert (trajectory(play(configure(**keys, chunk_users=1))) - whole).abs().max() <= 1e-12
