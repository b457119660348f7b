from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pfl_flower.objective import losses
from pfl_flower.objective.models import Linear
from pfl_flower.objective.regularizers import L2, SquaredL2
from pfl_flower.objective.table import REGULARIZERS
from pfl_flower.objective.user_data import UserData, padded_size
from pfl_flower.solvers.population import Population
from tests.support import problems, reference

SIZES = (3, 17, 1, 16, 17, 40)


def close(got: Tensor, expected: Tensor, rtol: float = 1e-11, atol: float = 1e-11) -> None:
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


def weighted_users(case: problems.LossCase, sizes: tuple[int, ...], seed: int) -> list[UserData]:
    """Users of unequal sizes, every other one with weights."""
    source = problems.generator(seed)
    users = problems.small_users(case, sizes=sizes, inputs=3, seed=source)
    return [
        UserData(
            user.features,
            user.labels,
            torch.rand(len(user.labels), generator=source).double() + 0.5 if row % 2 else None,
        )
        for row, user in enumerate(users)
    ]


def build(
    users: list[UserData], case: problems.LossCase, name: str, **options: object
) -> Population:
    return Population(
        users,
        model=Linear(3, case.outputs),
        loss=losses.LOSSES[case.name](),
        regularizer=REGULARIZERS.load(name)(lam=2.0),
        nu=0.1,
        **options,
    )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("case", problems.LOSSES + problems.SOFT_LOSSES)
class TestUnequalSizes:
    """Every result's row n is what user n gets alone."""

    def test_loss(self, case: problems.LossCase, reduction: str) -> None:
        users = weighted_users(case, SIZES, seed=1)
        everyone = build(users, case, "squared-l2", reduction=reduction)
        theta = problems.normal(len(users), everyone.model.dim, seed=problems.generator(2))
        value, gradient, smoothness = (
            everyone.value(theta),
            everyone.gradient(theta),
            everyone.smoothness(),
        )
        assert value.shape == smoothness.shape == (len(users),)
        for row, user in enumerate(users):
            weights = torch.ones(len(user.labels)) if user.weights is None else user.weights
            expected = reference.user_loss(
                case.name,
                theta[row],
                user.features,
                user.labels,
                weights,
                nu=0.1,
                reduction=reduction,
            )
            assert value[row].item() == pytest.approx(expected, rel=1e-12)
            alone = build([user], case, "squared-l2", reduction=reduction)
            one = theta[row : row + 1]
            close(gradient[row], alone.gradient(one)[0])
            close(smoothness[row], alone.smoothness()[0])
            close(everyone.hessian(row, theta[row]), alone.hessian(0, theta[row]))

    def test_hessian_is_the_users_own(self, case: problems.LossCase, reduction: str) -> None:
        users = weighted_users(case, SIZES, seed=3)
        everyone = build(users, case, "squared-l2", reduction=reduction)
        theta = problems.normal(len(users), everyone.model.dim, seed=problems.generator(4))
        jacobian = reference.central_difference(everyone.gradient, theta)
        for row in range(len(users)):
            hessian = everyone.hessian(row, theta[row])
            close(hessian, jacobian[row, :, row], rtol=1e-6, atol=1e-6)

    def test_minibatch(self, case: problems.LossCase, reduction: str) -> None:
        """Averaged over all pairs of points, the estimate is the gradient; padding is not drawn."""
        users = weighted_users(case, (3, 17, 2), seed=5)
        everyone = build(users, case, "squared-l2", reduction=reduction)
        theta = problems.normal(3, everyone.model.dim, seed=problems.generator(6))
        for row, user in enumerate(users):
            size = len(user.features)
            estimates = []
            for pair in itertools.product(range(size), repeat=2):
                draws = [torch.tensor([0.0, 0.999])] * 3
                draws[row] = (torch.tensor(pair) + 0.5) / size
                estimates.append(everyone.minibatch_gradient(theta, draws)[row])
            close(torch.stack(estimates).mean(dim=0), everyone.gradient(theta)[row])
        last = [torch.full((1,), 1 - 2**-24)] * 3
        first = [torch.zeros(1)] * 3
        for draws, index in ((last, -1), (first, 0)):
            estimate = everyone.minibatch_gradient(theta, draws)
            for row, user in enumerate(users):
                total = sum(user.weights) if user.weights is not None else len(user.labels)
                weight = 1.0 if user.weights is None else user.weights[index]
                stretch = len(user.labels) * weight / (total if reduction == "mean" else 1)
                point = UserData(user.features[index][None], user.labels[index][None])
                alone = build([point], case, "squared-l2").gradient(theta[row][None])[0]
                ridge = 2 * 0.1 * theta[row]
                close(estimate[row], (alone - ridge) * stretch + ridge)


@pytest.mark.parametrize("name", problems.REGULARIZERS)
@pytest.mark.parametrize("case", problems.LOSSES + problems.SOFT_LOSSES)
def test_solve_and_report_row_by_row(case: problems.LossCase, name: str) -> None:
    users = weighted_users(case, SIZES, seed=7)
    everyone = build(users, case, name)
    source = problems.generator(8)
    rho = 0.3 * problems.normal(everyone.model.dim, seed=source)
    start = rho + problems.normal(len(users), everyone.model.dim, seed=source)
    solution = everyone.solve(rho, start)
    report = everyone.report(rho, solution.theta)
    assert bool(solution.converged.all())
    for row, user in enumerate(users):
        alone = build([user], case, name)
        single = alone.solve(rho, start[row : row + 1])
        assert torch.equal(single.theta[0], solution.theta[row])
        close(single.residual[0], solution.residual[row], atol=1e-12)
        assert single.iterations[0] == solution.iterations[row]
        close(alone.report(rho, single.theta)[0], report[row])
    close(report, everyone.gradient(solution.theta), rtol=0, atol=1e-9)


def test_each_user_starts_from_its_own_row() -> None:
    """A warm start is free only in the user's own row."""
    case = problems.LossCase("logistic")
    users = weighted_users(case, SIZES, seed=9)
    everyone = build(users, case, "smooth-l2")
    rho = torch.zeros(3).double()
    theta = everyone.solve(rho, torch.ones(6, 3).double()).theta
    assert everyone.solve(rho, theta).iterations.tolist() == [0] * 6
    assert bool((everyone.solve(rho, theta.flip(0)).iterations > 0).all())


@pytest.mark.parametrize("case", problems.LOSSES)
def test_l2_at_rho_reports_the_projected_gradient(case: problems.LossCase) -> None:
    users = weighted_users(case, SIZES, seed=10)
    rho = torch.full((3 * case.outputs,), 0.5, dtype=torch.float64)
    theta = rho.expand(6, -1).clone()
    theta[1] += 0.1
    opinion = problems.population(users, case, "l2", lam=1.0, nu=0.1).gradient(theta)
    lam = torch.linalg.vector_norm(opinion, dim=-1).median().item() * 1.1
    report = problems.population(users, case, "l2", lam=lam, nu=0.1).report(rho, theta)
    for row in (0, 2, 3, 4, 5):
        miss = reference.miss_on_ball(report[row] - opinion[row], report[row], lam)
        assert miss <= 1e-14 * torch.linalg.vector_norm(opinion[row])
    close(report[1], -lam * torch.ones_like(rho) / len(rho) ** 0.5)
    assert 0 < sum(torch.equal(report[row], opinion[row]) for row in (0, 2, 3, 4, 5)) < 5


@pytest.mark.parametrize("name", ["squared-l2", "smooth-l2"])
def test_smooth_couplings_report_zero_at_rho(name: str) -> None:
    case = problems.LossCase("logistic")
    everyone = build(weighted_users(case, SIZES, seed=11), case, name)
    rho = torch.ones(3).double()
    assert torch.count_nonzero(everyone.report(rho, rho.expand(6, 3))) == 0


@pytest.mark.parametrize("name", problems.REGULARIZERS)
@pytest.mark.parametrize("case", problems.LOSSES)
def test_rounds_equal_the_plain_loop(case: problems.LossCase, name: str) -> None:
    """Three rounds of federated gradient descent against scipy's local solves."""
    honest, users = problems.small_population(case, name, users=2, seed=problems.generator(12))
    rho = torch.zeros(honest.model.dim).double() + 2.0
    expected = reference.federated(users, name, 1.0, rho, eta=0.1, rounds=3)
    theta = torch.zeros(2, honest.model.dim).double()
    for step in expected[1:]:
        theta = honest.solve(rho, theta).theta
        rho = rho - 0.1 * honest.report(rho, theta).sum(dim=0)
        close(rho, step, rtol=1e-7, atol=1e-7)
    assert torch.linalg.vector_norm(rho - expected[0]) > 0.1


def test_padding_wastes_at_most_an_eighth() -> None:
    for points in [*range(1, 3000), 60_000, 2**20 - 1, 2**20, 2**20 + 1]:
        padded = padded_size(points)
        assert points <= padded <= 1.125 * points, points
    assert len({padded_size(points) for points in range(1, 3000)}) < 80


class TestErrors:
    def build(self, users: list[UserData]) -> Population:
        return Population(
            users, model=Linear(2, 1), loss=losses.LeastSquares(), regularizer=SquaredL2()
        )

    def test_no_user(self) -> None:
        with pytest.raises(ValueError, match="at least one user"):
            self.build([])

    def test_user_without_points(self) -> None:
        full = UserData(torch.ones(1, 2), torch.ones(1))
        assert self.build([full]).size == 1
        with pytest.raises(ValueError, match="at least one point"):
            self.build([full, UserData(torch.ones(0, 2), torch.ones(0))])

    @pytest.mark.parametrize("row", [2, -1])
    def test_hessian_of_nobody(self, row: int) -> None:
        full = UserData(torch.ones(1, 2), torch.ones(1))
        with pytest.raises(IndexError, match=r"expected 0 \.\. 1"):
            self.build([full, full]).hessian(row, torch.zeros(2).double())


def test_contract_of_the_solves_is_passed_on() -> None:
    case = problems.LossCase("logistic")
    users = weighted_users(case, (9, 4), seed=14)
    rho, start = torch.zeros(3).double(), torch.full((2, 3), 5.0).double()
    assert not build(users, case, "smooth-l2", max_iterations=1).solve(rho, start).converged.any()
    loose = build(users, case, "smooth-l2", tolerance=1e6).solve(rho, start)
    assert loose.iterations.tolist() == [0, 0]


def test_single_precision() -> None:
    case = problems.LossCase("softmax", outputs=3)
    users = weighted_users(case, SIZES, seed=15)
    double, single = build(users, case, "l2"), build(users, case, "l2", dtype=torch.float32)
    theta = problems.normal(6, 9, seed=problems.generator(16))
    gradient = single.gradient(theta.float())
    assert gradient.dtype == torch.float32
    close(gradient.double(), double.gradient(theta), rtol=1e-4, atol=1e-4)
    assert L2(lam=2.0) == single.regularizer
