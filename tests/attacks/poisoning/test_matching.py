from dataclasses import replace

import pytest
import torch

from pfl_flower.attacks.poisoning.aim import rounded
from pfl_flower.attacks.poisoning.matching import matching
from pfl_flower.attacks.poisoning.repeated import least_weight
from pfl_flower.objective.losses import Softmax
from pfl_flower.objective.models import augment
from pfl_flower.objective.regularizers import L2, SmoothL2, SquaredL2
from pfl_flower.support.seeding import generator
from tests.support.small_problems import CLASSIFIERS, SmallProblem, aim_for, name, norm, normal


@pytest.mark.parametrize("variant", ["free", "integer", "box"])
@pytest.mark.parametrize(
    "regularizer",
    [SquaredL2(lam=1.0), SmoothL2(lam=1.0), SmoothL2(lam=40.0), L2(lam=1.0)],
    ids=lambda r: f"{type(r).__name__}-{r.lam}",
)
@pytest.mark.parametrize("loss", CLASSIFIERS, ids=name)
def test_matching_holds_the_target_or_its_reachable_limit(loss, regularizer, variant):
    problem = SmallProblem(loss, regularizer, free=3)
    assert problem.limit.converged
    assert problem.limit.reached == (regularizer.lam > 1 or isinstance(regularizer, SquaredL2))
    aim = problem.aim(epsilon=1e-3)
    options = {"free": {}, "integer": {"integer": True}, "box": {"box": (-1.0, 1.0)}}[variant]
    data = matching(aim, generator=generator(0, "m"), **options)
    assert data.feasible and data.distinct <= 20
    assert least_weight(aim) * (1 - 1e-9) <= data.total_weight
    if variant != "box":
        slack = 12 if variant == "integer" else 1e-9
        assert data.total_weight <= 1.1 * least_weight(aim) + slack
    if variant == "integer":
        assert torch.equal(data.weights, data.weights.round())
    if variant == "box":
        assert float(data.features[:, :-1].abs().max()) <= 1
    assert problem.miss(data) <= 1e-8
    assert problem.miss() > 1e-2


def test_given_queries_that_cannot_meet_the_aim_are_reported():
    aim = aim_for(Softmax(), free=6)
    queries = augment(torch.cat([normal(40, 5, seed=1) / 3, torch.zeros(40, 1)], dim=1))
    data = matching(aim, generator=generator(0, "m"), candidates=queries)
    demand = aim.demand
    # Feature 5 is dead in every query, so that column of the demand stays, and only that.
    assert not data.feasible
    assert data.residual == pytest.approx(norm(demand[:, 5]), rel=1e-6)
    alive = aim.gradient.clone().view(3, 7)
    alive[:, 5] = 2 * aim.nu * aim.theta[:, 5]
    data = matching(
        replace(aim, gradient=alive.reshape(-1)), generator=generator(0, "m"), candidates=queries
    )
    assert data.feasible
    pool = {tuple(row) for row in queries.tolist()}
    assert {tuple(row) for row in data.features.tolist()} <= pool
    whole = rounded(replace(aim, gradient=alive.reshape(-1)), data)
    assert not whole.feasible and 0 < whole.residual


def test_no_data_hold_classes_that_do_not_sum_to_zero():
    aim = aim_for(Softmax())
    shifted = replace(aim, gradient=aim.gradient + 0.5)
    data = matching(shifted, generator=generator(0, "m"))
    assert not data.feasible
    assert data.residual == pytest.approx(0.5 * 15**0.5, rel=1e-6)


def test_matching_is_reproducible():
    aim = aim_for(Softmax())
    one, two = (matching(aim, generator=generator(0, "m")) for _ in range(2))
    assert torch.equal(one.features, two.features) and torch.equal(one.weights, two.weights)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", CLASSIFIERS, ids=name)
def test_degenerate_aims_are_met(loss, bias):
    aim = aim_for(loss, bias=bias)
    one = torch.ones_like(aim.theta)
    none, slopes = torch.zeros_like(one), one.clone()
    slopes[:, -1] = 0
    cases = {
        "no slopes": (none, aim.demand),
        "nothing wanted": (aim.theta, none),
        "nothing at all": (none, none),
        # Classes that differ in one direction only, and a demand in the others.
        "one direction": (aim.theta[:, :1] * slopes * torch.eye(one.shape[1])[0], aim.demand),
    }
    for case, (theta, demand) in cases.items():
        spade = theta.double().reshape(-1)
        aim = replace(aim, attack_model=spade, gradient=2 * aim.nu * spade - demand.reshape(-1))
        data = matching(aim, generator=generator(0, "m"))
        assert data.feasible, case
        assert len(data.features) > 0 and bool(data.features.isfinite().all()), case


@pytest.mark.parametrize("bias", [True, False])
def test_equal_shifts_of_all_classes_change_nothing(bias):
    """A model attack's theta_spade need not be centred; the scores that count are."""
    aim = replace(aim_for(Softmax(), bias=bias), nu=0.0)
    shift = 40 * normal(aim.model.inputs, seed=8).expand(3, -1).reshape(-1)
    shifted = replace(aim, attack_model=aim.attack_model + shift)
    one, two = (matching(a, generator=generator(0, "m")) for a in (aim, shifted))
    assert one.feasible and two.feasible and len(one.features) == len(two.features)
    assert two.total_weight == pytest.approx(one.total_weight, rel=1e-6)
    torch.testing.assert_close(two.features, one.features, rtol=1e-5, atol=1e-5)
