"""What attackers are given: each attack at each of its levels, the same on any number of nodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict
from torch import Tensor

from clients.strategic import StrategicClient
from pfl_flower.attacks.attack import Observation, known_rows
from pfl_flower.attacks.cga import CounterGradient
from pfl_flower.attacks.knowledge import EVERY, KNOWLEDGE
from pfl_flower.attacks.table import ATTACKS, knowledge_of
from pfl_flower.run.outcome import title
from pfl_flower.run.problem import build_problem
from pfl_flower.run.strategic_user import StrategicUser
from pfl_flower.support.errors import ConfigError
from pfl_flower.transport.broadcasts import unpack_broadcast
from tests.support.runs import CPU, configure, play, tampering, trajectory

TOLD = [name for name, row in ATTACKS.items() if "omniscient" in row.knows]
LEVELS = [(name, level) for name, row in ATTACKS.items() for level in row.knows]


def images(attack: str) -> dict[str, Any]:
    """What an attack with a trigger needs besides."""
    return {"dataset": "digits", "points_per_user": "40"} if ATTACKS.row(attack).trigger else {}


def observed(**more: Any) -> Observation:
    zero = torch.zeros(2, dtype=torch.float64)
    return Observation(round=1, rho=zero + 1, eta=0.5, eta_sum=0.0, accepted=zero, **more)


def test_every_level_is_described_and_every_attack_has_one() -> None:
    assert tuple(KNOWLEDGE) == EVERY == ("own", "surrogates", "rule", "omniscient")
    assert all(row.knows and set(row.knows) <= set(EVERY) for row in ATTACKS.values())
    assert set(ATTACKS.own.knows) == set(EVERY)


@pytest.mark.parametrize(("attack", "level"), LEVELS)
def test_every_output_says_what_the_attacker_was_given(attack: str, level: str) -> None:
    changes = {"attack": attack, "attack_knowledge": level, "users": 5, **images(attack)}
    config = configure(**changes)
    assert knowledge_of(config) == level
    assert (f"knows: {level}" in title(config)) == (level != "own")
    default = configure(**{**changes, "attack_knowledge": ""})
    assert knowledge_of(default) == ATTACKS[attack].knows[0]


@pytest.mark.parametrize("strategic", ["4", "1,4"])
@pytest.mark.parametrize("attack", TOLD)
def test_omniscient_attackers_hear_the_honest_reports_of_the_round(
    attack: str, strategic: str
) -> None:
    """In one process, where one node acts for both kinds, and on a node for each user."""
    changes = {"attack": attack, "attack_knowledge": "omniscient", "rounds": 3, **images(attack)}
    if attack != "cga":
        changes["aggregation"] = "median"
    config = configure(strategic_users=strategic, **changes)
    heard: list[Tensor] = []

    def spy(message: Message, reply: Message) -> Message:
        told = unpack_broadcast(message.content, CPU)
        if told.honest is not None:
            assert told.coalition == len(strategic.split(","))
            assert set(told.users) <= {1, 4}
            heard.append(told.honest)
        return reply

    one = play(config, nodes=1, app=tampering(4, spy))
    assert len(heard) == 3
    for record, rows in zip(one, heard, strict=True):
        honest = [row for user, row in record.accepted.items() if user not in record.strategic]
        assert torch.equal(rows, torch.stack(honest))
        assert len(record.accepted) == 5
    five = play(config, nodes=5)
    assert torch.allclose(trajectory(one), trajectory(five), rtol=0, atol=1e-9)


def test_nobody_else_is_told() -> None:
    seen: list[tuple[tuple[int, ...], bool]] = []

    def spy(message: Message, reply: Message) -> Message:
        told = unpack_broadcast(message.content, CPU)
        seen.append((told.users, told.honest is not None))
        return reply

    for level in ("own", "omniscient"):
        play(configure(attack_knowledge=level, rounds=2), nodes=2, app=tampering(0, spy))
        play(configure(attack_knowledge=level, rounds=2), nodes=2, app=tampering(4, spy))
    assert [given for users, given in seen if 0 in users] == [False] * 4
    assert [given for users, given in seen if 4 in users] == [False, False, True, True]


def test_omniscient_cga_lands_on_its_target_in_one_round() -> None:
    """Nothing is left to estimate, and under squared l2 nothing is too long to report."""
    config = configure(attack_knowledge="omniscient", rounds=1)
    target = build_problem(config).target
    assert torch.allclose(play(config)[0].rho, target, rtol=0, atol=1e-12)
    guessed = play(configure(rounds=1))[0].rho
    assert float((guessed - target).norm()) > 1e-3


def test_omniscient_cga_cancels_what_it_is_told() -> None:
    honest = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    attack = CounterGradient(target=torch.zeros(2).double(), estimator="known", coalition=2)
    report, _ = attack.update(attack.init(torch.zeros(2)), observed(honest=honest))
    assert report.tolist() == [(2 - 1.5) / 2, (2 - 1.0) / 2]


def test_a_round_without_honest_reports_is_survived() -> None:
    empty = observed(honest=torch.zeros((0, 2)).double(), coalition=1)
    for attack in TOLD:
        config = configure(attack=attack, attack_knowledge="omniscient", **images(attack))
        problem = build_problem(config)
        client = StrategicClient(problem, (4,), RecordDict())
        assert client.problem is problem
        assert known_rows((), empty).shape == (0, 2)

    def silent(message: Message, reply: Message) -> Message:
        raise RuntimeError("no answer")

    for attack in TOLD:
        config = configure(
            attack=attack,
            attack_knowledge="omniscient",
            rounds=1,
            users=2,
            strategic_users="1",
            **{"points_per_user": "40,20", **images(attack)},
        )
        record = play(config, nodes=2, app=tampering(0, silent))[0]
        assert list(record.accepted) == [1]
        assert bool(record.rho.isfinite().all())


def test_what_is_not_given_is_refused() -> None:
    with pytest.raises(ValueError, match="honest: expected the reports of the round"):
        known_rows((), observed())
    own = "tests.attacks.test_knowledge:StrategicUser"
    user = StrategicUser(build_problem(configure(attack=own, attack_knowledge="own")), 4)
    for asked in ("drawn", "rule"):
        with pytest.raises(ConfigError, match="attack-knowledge = own: expected "):
            getattr(user, asked)
    known = StrategicUser(build_problem(configure(attack=own, attack_knowledge="rule")), 4)
    assert known.rule(torch.ones(3, 2)).tolist() == [3.0, 3.0]
    assert known.drawn == (5, 6, 7, 8, 9)
    assert known.stand_ins(2) == tuple(range(5, 13))
    told = StrategicUser(build_problem(configure(attack=own, attack_knowledge="omniscient")), 4)
    assert told.drawn == told.stand_ins(3) == ()


def test_samples_of_users_are_told_of_those_who_are_asked() -> None:
    config = configure(
        attack="rule-aware",
        attack_knowledge="omniscient",
        participation=0.6,
        users=5,
        strategic_users="3,4",
        aggregation="median",
        rounds=5,
    )
    one, five = (trajectory(play(config, nodes=nodes)) for nodes in (1, 5))
    assert torch.allclose(one, five, rtol=0, atol=1e-9)
