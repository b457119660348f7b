import math

import pytest
import torch

from pfl_flower.attacks.poisoning.aim import Aim
from pfl_flower.attacks.poisoning.matching import matching
from pfl_flower.attacks.poisoning.repeated import label_bound, least_weight, repeated
from pfl_flower.objective.losses import Logistic
from pfl_flower.objective.models import Linear
from pfl_flower.objective.regularizers import SquaredL2
from pfl_flower.support.seeding import generator
from tests.support.small_problems import SmallProblem, normal, replace_data


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_no_label_adds_more_than_the_bound(classes):
    def added(scores, labels):
        p = torch.softmax(scores, dim=-1)
        return ((labels - p) * scores).sum(dim=-1)

    # Label 1, ahead of label i by u_i, adds sum u_i e^-u_i / (1 + sum e^-u_i). That is at most b
    # if sum (u_i - b) e^-u_i <= b; of these C - 1 terms none exceeds e^-(1 + b), at u_i = 1 + b.
    bound, first = label_bound(classes), torch.eye(classes, dtype=torch.float64)[0]
    assert (classes - 1) * math.exp(-1 - bound) == pytest.approx(bound, rel=1e-14)
    assert float(added((1 + bound) * first, first)) == pytest.approx(bound, rel=1e-14)
    for scale in (0.3, 1.0, 3.0, 30.0):
        scores = scale * normal(20_000 // classes, classes, seed=2)
        soft = torch.softmax(3 * normal(*scores.shape, seed=3), dim=-1)
        hard = torch.eye(classes, dtype=torch.float64)[scores.argmax(-1)]
        assert float(added(scores, soft).max()) <= bound + 1e-12
        assert float(added(scores, hard).max()) <= bound + 1e-12
    with pytest.raises(ValueError, match="classes"):
        label_bound(1)


@pytest.mark.parametrize("seed", range(5))
def test_repeated_attains_the_bound_and_holds_the_target(seed):
    lam, nu = 0.8, 0.05
    problem = SmallProblem(
        Logistic(), SquaredL2(lam=lam), bias=False, nu=nu, seed=seed, free=3 + seed
    )
    aim = problem.aim()
    data = repeated(aim)
    spade, target = aim.attack_model, problem.target
    v = lam * (spade - target) + nu * spade
    t = 1.2784645427610738
    torch.testing.assert_close(data.features[0], t * v / (v @ spade), rtol=1e-12, atol=0)
    assert data.distinct == 1 and data.labels.tolist() == [1] and data.feasible
    bound = float(2 * lam * (spade - target) @ spade + 2 * nu * spade @ spade) / (t - 1)
    assert data.total_weight == pytest.approx(bound, rel=1e-12)
    assert least_weight(aim) == pytest.approx(bound, rel=1e-12)
    assert problem.miss(data) <= 1e-9
    # Whole labels cost less than one more, and are as exact.
    whole = repeated(aim, integer=True)
    assert whole.feasible and whole.total_weight == float(whole.weights.round().sum())
    assert bound <= whole.total_weight < bound + 1 and problem.miss(whole) <= 1e-9
    # No attack, and the honest data of another user, fail the check.
    assert problem.miss() > 0.1 and problem.miss(replace_data(data, problem.users[0])) > 0.1


def repeated_cases():
    """Demands in each of the regimes of ``repeated``: (product with theta_spade, last entry)."""
    for product, last in [
        (3.0, 0.5),
        (3.0, -0.5),
        (3.0, 0.0),
        (0.5, 4.0),
        (0.5, -4.0),
        (3.0, 2.6),
        (3.0, -2.6),
        (-3.0, 2.0),
        (-3.0, -2.0),
        (-3.0, 0.0),
        (0.0, 1.0),
        (0.0, 0.0),
    ]:
        spade = normal(5, seed=1)
        demand = normal(5, seed=2)
        demand[-1] = last
        slopes = spade[:-1]
        missing = product - float(demand @ spade)
        demand[:-1] += missing * slopes / (slopes @ slopes)
        aim = Aim(
            model=Linear(5, 1),
            loss=Logistic(),
            attack_model=spade,
            gradient=0.2 * spade - demand,
            nu=0.1,
            bias=True,
        )
        yield pytest.param(aim, product, last, id=f"{product},{last}")


@pytest.mark.parametrize(("aim", "product", "last"), list(repeated_cases()))
def test_repeated_with_a_constant_feature_is_cheapest(aim, product, last):
    data = repeated(aim)
    assert data.feasible and data.residual <= 1e-12 and data.distinct <= 2
    assert bool((data.features[:, -1] == 1).all())
    t = 1 + label_bound(2)
    if abs(last) * t < product:
        assert data.total_weight == pytest.approx(least_weight(aim), rel=1e-12)
    elif last:
        assert data.distinct == 1 and data.total_weight >= least_weight(aim) - 1e-12
    if max(product, abs(last)) > 0 and (product > 0 or last):
        # The convex programme, which knows nothing of this, finds nothing cheaper.
        other = matching(aim, generator=generator(0, "m"), gap=1e-6)
        assert other.feasible
        assert other.total_weight >= data.total_weight * (1 - 1e-6)
        assert other.total_weight <= data.total_weight * 1.01 + 0.01


@pytest.mark.parametrize("product", [-5.0, -0.1, 0.0])
def test_repeated_where_nothing_is_least(product):
    spade = normal(4, seed=1)
    demand = normal(4, seed=2)
    demand += (product - float(demand @ spade)) * spade / (spade @ spade)
    aim = Aim(model=Linear(4, 1), loss=Logistic(), attack_model=spade, gradient=-demand)
    data = repeated(aim)
    assert data.feasible and data.total_weight == 1
    assert least_weight(aim) == pytest.approx(0, abs=1e-12)
