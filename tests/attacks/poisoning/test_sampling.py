from dataclasses import replace

import pytest
import torch

from pfl_flower.attacks.equivalence import honest_sum, model_from_gradient
from pfl_flower.attacks.poisoning.aim import (
    Aim,
    PoisonedData,
    gaussian_queries,
    local_gradient,
    rounded,
)
from pfl_flower.attacks.poisoning.indifference import indifference, indifference_subspace
from pfl_flower.attacks.poisoning.matching import matching
from pfl_flower.attacks.poisoning.repeated import least_weight, repeated
from pfl_flower.attacks.poisoning.sampling import sampling
from pfl_flower.attacks.poisoning.single_point import single_point
from pfl_flower.objective.losses import LeastSquares, Logistic, Softmax
from pfl_flower.objective.regularizers import SquaredL2
from pfl_flower.objective.user_data import UserData
from pfl_flower.solvers.population import Population
from pfl_flower.support.seeding import generator
from tests.support.small_problems import (
    CLASSIFIERS,
    SmallProblem,
    aim_for,
    name,
    norm,
    normal,
    replace_data,
)

# --- Theorem 5 ----------------------------------------------------------------------------


def joint_normal_equations(users, lam, nu):
    """Minimise LOSS for least squares and squared l2 as one dense linear system in (rho, theta)."""
    dim, count = users[0].features.shape[1], len(users)
    identity = torch.eye(dim, dtype=torch.float64)
    system = torch.zeros(dim * (count + 1), dim * (count + 1), dtype=torch.float64)
    right = torch.zeros(dim * (count + 1), dtype=torch.float64)
    system[:dim, :dim] = 2 * lam * count * identity
    for n, user in enumerate(users, start=1):
        block = slice(n * dim, (n + 1) * dim)
        gram = user.features.T @ user.features
        system[block, block] = gram + 2 * (nu + lam) * identity
        system[:dim, block] = system[block, :dim] = -2 * lam * identity
        right[block] = user.features.T @ user.labels
    return torch.linalg.solve(system, right)[:dim]


SIZES = [(1, 1), (2, 3), (5, 2), (10, 20), (20, 7), (35, 1), (50, 4), (50, 20)]


@pytest.mark.parametrize("nu", [0.0, 0.1])
@pytest.mark.parametrize(("dim", "users"), SIZES)
def test_one_point_holds_rho_at_the_target(dim, users, nu):
    lam = 0.1 + 2 * torch.rand(1, generator=generator(dim, users, "lam")).item()
    coupling = SquaredL2(lam=lam)
    problem = SmallProblem(
        LeastSquares(), coupling, bias=False, users=users, points=60, free=dim, nu=nu, seed=dim
    )
    assert norm(problem.target - problem.centre) >= norm(problem.centre)
    gradient = -honest_sum(problem.honest, problem.target).value
    spade = model_from_gradient(coupling, problem.target, gradient).value
    aim = Aim.at(
        coupling, problem.target, spade, model=problem.settings["model"], loss=LeastSquares(), nu=nu
    )
    data = single_point(aim)
    query = aim.gradient - 2 * nu * spade
    assert data.distinct == 1 and data.total_weight == 1 and data.feasible
    torch.testing.assert_close(data.features[0], query, rtol=0, atol=1e-12)
    torch.testing.assert_close(data.labels[0], query @ spade - 1, rtol=1e-14, atol=1e-12)
    goal = 1e-6 * (1 + norm(problem.target))
    assert problem.miss(data) <= 1e-6
    joint = joint_normal_equations([*problem.users, UserData(data.features, data.labels)], lam, nu)
    assert norm(joint - problem.target) <= goal
    # Without the point, and with an honest user's data in its place, the same check fails.
    assert norm(joint_normal_equations(problem.users, lam, nu) - problem.target) > goal
    assert problem.miss(replace_data(data, problem.users[0])) > 1e-6


@pytest.mark.parametrize(
    ("last", "points"), [(2.0, 1), (0.02, 1), (1e-4, 2), (1e-5, 2), (-1e-5, 2), (0.0, 2)]
)
def test_a_point_with_a_constant_feature(last, points):
    """Where the constant feature needs almost no force, one point's answer loses its digits."""
    problem = SmallProblem(LeastSquares(), SquaredL2(lam=0.5), users=4)
    aim = problem.aim()
    gradient = aim.gradient.clone()
    gradient[-1] = 2 * aim.nu * aim.attack_model[-1] + last
    data = single_point(replace(aim, gradient=gradient))
    assert data.feasible and data.residual <= 1e-9 and data.distinct == points
    assert bool((data.features[:, -1] == 1).all())
    data = single_point(aim)
    assert data.distinct == 1 and problem.miss(data) <= 1e-6
    assert problem.miss() > 0.1


def test_a_target_without_need_of_force_is_held_by_an_empty_pull():
    aim = replace(aim_for(LeastSquares(), bias=False, nu=0.0), gradient=torch.zeros(4).double())
    data = single_point(aim)
    assert data.feasible and bool((data.features == 0).all())


# --- What every method reports ------------------------------------------------------------


def made_by_all():
    draws = generator(0, "methods")
    regression = aim_for(LeastSquares())
    yield regression, single_point(regression)
    for loss in CLASSIFIERS:
        for bias in (True, False):
            aim = aim_for(loss, bias=bias)
            queries = gaussian_queries(aim, 12, generator=draws)
            yield aim, sampling(aim, queries, generator=draws)
            yield aim, indifference(aim, queries, generator=draws)
            yield aim, indifference(aim, queries, generator=draws, labels="drawn", draws=5)
            yield aim, indifference(aim, queries, generator=draws, box=(-0.5, 0.5), weight=2.5)
            yield aim, matching(aim, generator=draws, gap=0.1)
            yield aim, matching(aim, generator=draws, gap=0.1, integer=True)
            yield aim, matching(aim, generator=draws, gap=0.1, box=(-1.0, 1.0))
            yield aim, matching(aim, generator=draws, gap=0.1, box=(-1.0, 1.0), integer=True)
            yield aim, matching(aim, generator=draws, gap=0.1, candidates=queries)
            if isinstance(loss, Logistic):
                yield aim, repeated(aim)


def test_residual_weight_and_count_are_recomputed_from_the_data():
    for aim, data in made_by_all():
        data = data.hard()
        theta = aim.attack_model.clone().requires_grad_()
        scores = data.features @ theta.view(aim.model.outputs, -1).T
        values = aim.loss.values(scores, data.labels)
        (aim.nu * (theta @ theta) + (data.weights * values).sum()).backward()
        scale = 1 + norm(aim.gradient)
        assert norm(theta.grad - aim.gradient) == pytest.approx(data.residual, abs=1e-9 * scale)
        assert data.feasible == (data.residual <= 1e-8 * scale), data.method
        assert data.total_weight == pytest.approx(float(data.weights.sum())), data.method
        assert data.distinct == len({tuple(row) for row in data.features.tolist()})
        assert bool((data.weights > 0).all())
        if aim.bias:
            assert bool((data.features[:, -1] == 1).all()), data.method


def test_soft_and_hard_labels_are_the_same_loss():
    aim = aim_for(Softmax())
    draws = generator(1, "soft")
    queries = gaussian_queries(aim, 7, generator=draws)
    data = indifference(aim, queries, generator=draws, noise=0.5, weight=3.0)
    hard = data.hard()
    assert data.labels.shape == (7, 3) and hard.labels.shape == (21,)
    for at in (aim, replace(aim, attack_model=normal(15, seed=9))):
        one = local_gradient(at, data.features, data.labels, data.weights)
        two = local_gradient(at, hard.features, hard.labels, hard.weights)
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    user = data.user()
    Population([user, UserData(user.features, user.labels)], **problem_of(aim))


def problem_of(aim):
    return {"model": aim.model, "loss": aim.loss, "regularizer": SquaredL2(), "nu": aim.nu}


def test_rounding_reports_what_it_costs():
    aim = aim_for(Softmax())
    data = matching(aim, generator=generator(0, "m"))
    whole = rounded(aim, data)
    assert torch.equal(whole.weights, whole.weights.round())
    assert data.feasible and not whole.feasible and whole.residual > 1e-3
    empty = PoisonedData.measure(
        aim, "none", data.features, data.labels, torch.zeros_like(data.weights)
    )
    wanted = norm(2 * aim.nu * aim.attack_model - aim.gradient)
    assert not empty.feasible and empty.residual == pytest.approx(wanted)


def test_aims_and_queries_that_do_not_fit_are_refused():
    logistic, regression = aim_for(Logistic()), aim_for(LeastSquares())
    draws = generator(0, "bad")
    with pytest.raises(ValueError, match="attack_model"):
        replace(logistic, attack_model=torch.zeros(3))
    with pytest.raises(ValueError, match="last column"):
        sampling(logistic, torch.zeros(3, 5).double(), generator=draws)
    with pytest.raises(ValueError, match="queries"):
        sampling(logistic, torch.zeros(3, 4).double(), generator=draws)
    for method in (single_point,):
        with pytest.raises(ValueError, match="loss"):
            method(logistic)
    with pytest.raises(ValueError, match="loss"):
        repeated(regression)
    with pytest.raises(ValueError, match="loss"):
        matching(regression, generator=draws)
    with pytest.raises(ValueError, match="loss"):
        least_weight(regression)
    with pytest.raises(ValueError, match="loss"):
        indifference_subspace(regression)
    with pytest.raises(ValueError, match="box"):
        queries = gaussian_queries(logistic, 3, generator=draws)
        matching(logistic, generator=draws, candidates=queries, box=(0.0, 1.0))
    with pytest.raises(ValueError, match="integer"):
        repeated(logistic, integer=True)


# --- sampling (Theorems 2 and 3) ----------------------------------------------------------


def test_sampled_answers_follow_the_attack_model():
    regression = aim_for(LeastSquares())
    queries = gaussian_queries(regression, 20_000, generator=generator(0, "queries"))
    exact = sampling(regression, queries, generator=generator(0, "noise"))
    torch.testing.assert_close(exact.labels, queries @ regression.attack_model)
    noisy = sampling(regression, queries, generator=generator(0, "noise"), noise=0.3)
    noise = noisy.labels - exact.labels
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(0.3, abs=0.01)
    for loss in CLASSIFIERS:
        aim = aim_for(loss)
        one = gaussian_queries(aim, 1, generator=generator(3, "one"))
        aim = replace(aim, attack_model=aim.attack_model / (one @ aim.theta.T).abs().max())
        data = sampling(aim, one.expand(50_000, -1), generator=generator(0, "labels"))
        scores = one @ aim.theta.T
        if isinstance(loss, Logistic):
            probabilities = torch.sigmoid(torch.cat([-scores, scores], dim=1))[0]
            labels = (data.labels + 1) // 2
        else:
            probabilities, labels = torch.softmax(scores, dim=1)[0], data.labels
        share = labels.bincount(minlength=len(probabilities)) / len(labels)
        assert 0.05 < float(probabilities.min()) < float(probabilities.max()) - 0.1
        torch.testing.assert_close(share, probabilities.float(), rtol=0, atol=0.01)


@pytest.mark.parametrize("loss", [LeastSquares(), *CLASSIFIERS], ids=name)
def test_sampling_recovers_the_attack_model_with_enough_points(loss):
    problem = SmallProblem(loss, SquaredL2(lam=1.0))
    aim, misses = problem.aim(), []
    for points in (100, 1000, 30_000):
        queries = gaussian_queries(aim, points, generator=generator(0, "queries"))
        data = sampling(aim, queries, generator=generator(0, "answers"), noise=0.1)
        misses.append(problem.miss(data))
    assert misses[2] < 0.25 * misses[0] and misses[2] < 0.1 < 0.3 < problem.miss()
