from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfl_flower.aggregation.rows import Rows
from pfl_flower.attacks.attack import Observation, plausible_report
from pfl_flower.attacks.cga import CGAState, CounterGradient
from pfl_flower.objective.regularizers import L2, Regularizer, SmoothL2, SquaredL2
from strategies.parameter_server import ParameterServer
from strategies.replies import RoundReplies
from tests.support import reference
from tests.support.runs import configure, play

REGULARIZERS = [SquaredL2(lam=0.7), L2(lam=0.7), SmoothL2(lam=0.7)]


def vector(seed: int, size: int = 4) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=draw, dtype=torch.float64)


def seen(round: int, rho: Tensor, eta: float, eta_sum: float, accepted: Tensor) -> Observation:
    return Observation(round=round, rho=rho, eta=eta, eta_sum=eta_sum, accepted=accepted)


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("steps", [(0.3, 0.3), (0.3, 0.1), (0.05, 0.4)])
@pytest.mark.parametrize("seed", range(5))
def test_the_report_minimises_equation_6(
    regularizer: Regularizer, steps: tuple[float, float], seed: int
) -> None:
    rho, target, others = vector(seed), vector(seed + 100), vector(seed + 200)
    attack, (past, eta) = CounterGradient(target=target), steps
    accepted = vector(seed + 300)
    before = rho + past * (others + accepted)
    state = attack.update(attack.init(rho), seen(1, before, past, 0.0, torch.zeros_like(rho)))[1]
    report, _ = plausible_report(attack, state, seen(2, rho, eta, past, accepted), regularizer)

    def distance(gradient: Tensor) -> Tensor:
        return ((rho - eta * (others + gradient) - target) ** 2).sum() / (2 * eta**2)

    slope = reference.gradient(distance, report)
    # The estimate divides differences of numbers near 1 by a step: some 1e-16 / 0.05 are lost.
    assert reference.miss_on_ball(slope, report, regularizer.radius) <= 1e-12


def test_the_first_round_cancels_nothing() -> None:
    rho, target = vector(1), vector(2)
    attack = CounterGradient(target=target)
    gradient, _ = attack.update(attack.init(rho), seen(1, rho, 0.2, 0.0, torch.zeros_like(rho)))
    assert torch.allclose(gradient, (rho - target) / 0.2)


HISTORIES = {
    "every round": [True] * 6,
    "rejected twice": [True, True, False, False, True, True],
    "first rejected": [False, True, True],
}


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("missed", [(), (2,), (2, 3, 4)])
def test_the_estimate_is_exact_when_the_others_are_constant(
    name: str, missed: tuple[int, ...]
) -> None:
    """Step sizes change, reports are rejected, rounds are missed: ghat stays the others' sum."""
    others, target = vector(3), vector(4)
    attack = CounterGradient(target=target)
    rho, eta_sum, accepted = vector(5), 0.0, torch.zeros(4, dtype=torch.float64)
    state: CGAState = attack.init(rho)
    for t, counts in enumerate(HISTORIES[name], start=1):
        eta = 0.3 / t
        if t in missed:
            rho, eta_sum = rho - eta * others, eta_sum + eta
            continue
        observation = seen(t, rho, eta, eta_sum, accepted)
        if t > 1:
            assert torch.allclose(attack.estimate(state, observation), others, atol=1e-12)
        gradient, state = attack.update(state, observation)
        accepted = gradient if counts else torch.zeros_like(gradient)
        rho, eta_sum = rho - eta * (others + accepted), eta_sum + eta


def test_the_oracle_uses_what_the_server_gives() -> None:
    rho, given = vector(6), vector(7)
    attack = CounterGradient(target=vector(8), estimator="oracle")
    zero = torch.zeros_like(rho)
    state = attack.update(attack.init(rho), seen(1, rho, 0.1, 0.0, zero))[1]
    observation = Observation(
        round=2, rho=rho, eta=0.1, eta_sum=0.1, accepted=zero, honest_sum=given
    )
    assert torch.equal(attack.estimate(state, observation), given)
    with pytest.raises(ValueError, match="oracle"):
        attack.estimate(state, seen(2, rho, 0.1, 0.1, zero))


def test_an_empty_coalition_is_refused() -> None:
    with pytest.raises(ValueError, match="coalition = 0"):
        CounterGradient(target=vector(1), coalition=0)


class Rejecting(ParameterServer):
    """Rejects the strategic user's report in rounds 10 to 14, whatever it says."""

    def read(self, server_round, replies):  # type: ignore[no-untyped-def]
        found = super().read(server_round, replies)
        if 10 <= server_round < 15:
            kept = Rows.of({user: row for user, row in found.rows.items() if user != 4})
            return RoundReplies(kept, [], found.said)
        return found


def distances(strategy: type[ParameterServer], **changes: object) -> list[float]:
    config = configure(**{"regularizer": "squared-l2", "rounds": 60, **changes})
    from pfl_flower.run.problem import build_problem

    target = build_problem(config).target
    records = play(config, strategy=strategy)
    return [float(torch.linalg.vector_norm(record.rho - target)) for record in records]


def test_a_burst_of_rejections_delays_the_attack_and_no_more() -> None:
    smooth, burst = distances(ParameterServer), distances(Rejecting)
    assert burst[13] > 100 * smooth[13]
    assert smooth[-1] < 1e-8
    assert burst[-1] < 1e-8
    # An attacker who believes that its rejected report moved rho overshoots: by its whole report.
    assert burst[14] < burst[13]


def test_coordinated_attackers_reach_the_target_and_others_diverge() -> None:
    together = distances(ParameterServer, strategic_users="3,4")
    apart = distances(ParameterServer, strategic_users="3,4", coalition=1, rounds=15)
    assert together[-1] < 1e-8
    assert apart[-1] > 10 * apart[0]
