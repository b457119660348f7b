from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pfl_flower.objective import losses
from pfl_flower.objective.local_loss import LocalLoss, Reduction
from pfl_flower.objective.models import Linear
from pfl_flower.objective.two_layer import TwoLayer
from tests.support import problems, reference


def close(got: Tensor, expected: Tensor, rtol: float = 1e-7, atol: float = 1e-7) -> None:
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


def looped_value(case: problems.LossCase, loss: LocalLoss, theta: Tensor, reduction: str) -> Tensor:
    values = [
        reference.user_loss(
            case.name,
            theta[user],
            loss.features[user],
            loss.labels[user],
            loss.weights[user],
            nu=loss.nu,
            reduction=reduction,
        )
        for user in range(loss.users)
    ]
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("nu", [0.0, 0.3])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", problems.LOSSES + problems.SOFT_LOSSES)
class TestAgainstLoops:
    def problem(
        self, case: problems.LossCase, weighted: bool, reduction: Reduction, nu: float
    ) -> tuple[LocalLoss, Tensor]:
        source = problems.generator(1)
        loss = problems.local_loss(
            case, weighted=weighted, reduction=reduction, nu=nu, users=2, seed=source
        )
        return loss, problems.normal(2, loss.model.dim, seed=source)

    def test_value(
        self, case: problems.LossCase, weighted: bool, reduction: Reduction, nu: float
    ) -> None:
        loss, theta = self.problem(case, weighted, reduction, nu)
        expected = looped_value(case, loss, theta, reduction)
        close(loss.value(theta), expected, rtol=1e-13, atol=1e-13)

    def test_gradient(
        self, case: problems.LossCase, weighted: bool, reduction: Reduction, nu: float
    ) -> None:
        loss, theta = self.problem(case, weighted, reduction, nu)
        jacobian = reference.central_difference(
            lambda t: looped_value(case, loss, t, reduction), theta
        )
        for user in range(2):
            close(loss.gradient(theta)[user], jacobian[user, user])
            assert torch.count_nonzero(jacobian[user, 1 - user]) == 0

    def test_hessian_and_product(
        self, case: problems.LossCase, weighted: bool, reduction: Reduction, nu: float
    ) -> None:
        loss, theta = self.problem(case, weighted, reduction, nu)
        jacobian = reference.central_difference(loss.gradient, theta)
        hessian = loss.hessian(theta)
        direction = problems.normal(*theta.shape, seed=problems.generator(2))
        product = loss.hessian_product(theta, direction)
        for user in range(2):
            close(hessian[user], jacobian[user, :, user])
            close(product[user], jacobian[user, :, user] @ direction[user])


@pytest.mark.parametrize("case", problems.LOSSES + problems.SOFT_LOSSES)
class TestBatches:
    def test_padding_changes_nothing(self, case: problems.LossCase) -> None:
        source = problems.generator(3)
        for reduction in ("sum", "mean"):
            plain = problems.local_loss(case, reduction=reduction, weighted=True, seed=source)
            junk_features = 7 * problems.normal(2, 3, 3, seed=source)
            junk_labels = problems.draw_labels(case, 2, 3, seed=source)
            padded = LocalLoss.build(
                plain.model,
                plain.loss,
                torch.cat([junk_features, plain.features], dim=1),
                torch.cat([junk_labels, plain.labels], dim=1),
                weights=torch.cat([torch.zeros(2, 3), plain.weights], dim=1),
                nu=plain.nu,
                reduction=reduction,
            )
            theta = problems.normal(2, plain.model.dim, seed=source)
            close(padded.value(theta), plain.value(theta), rtol=1e-13)
            close(padded.gradient(theta), plain.gradient(theta), rtol=1e-13, atol=1e-13)
            close(padded.hessian(theta), plain.hessian(theta), rtol=1e-13, atol=1e-13)
            close(padded.smoothness(), plain.smoothness(), rtol=1e-13)

    def test_select(self, case: problems.LossCase) -> None:
        source = problems.generator(4)
        loss = problems.local_loss(case, users=3, weighted=True, reduction="mean", seed=source)
        theta = problems.normal(3, loss.model.dim, seed=source)
        index = torch.tensor([2, 0])
        assert loss.select(index).users == 2
        close(loss.select(index).gradient(theta[index]), loss.gradient(theta)[index], rtol=1e-13)
        close(loss.select(slice(1, 2)).value(theta[1:2]), loss.value(theta)[1:2], rtol=1e-13)

    @pytest.mark.parametrize("reduction", ["sum", "mean"])
    def test_minibatch_is_unbiased(self, case: problems.LossCase, reduction: Reduction) -> None:
        """Averaged over every pair of points that a user can draw; the second user is padded."""
        source, sizes = problems.generator(5), torch.tensor([3, 2])
        full = problems.local_loss(case, points=3, weighted=True, seed=source)
        weights = full.weights.clone()
        weights[1, 2] = 0.0
        full = LocalLoss.build(
            full.model,
            full.loss,
            full.features,
            full.labels,
            weights=weights,
            nu=full.nu,
            reduction=reduction,
        )
        theta = problems.normal(2, full.model.dim, seed=source)
        for user, size in enumerate(sizes.tolist()):
            estimates = []
            for pair in itertools.product(range(size), repeat=2):
                index = torch.tensor([pair, pair])
                estimates.append(full.minibatch(index, sizes).gradient(theta)[user])
            close(torch.stack(estimates).mean(dim=0), full.gradient(theta)[user], rtol=1e-12)
            assert len(estimates) == size**2
            spread = torch.stack(estimates).std(dim=0)
            assert bool((spread > 1e-3).any())

    def test_smoothness_bounds_the_hessian(self, case: problems.LossCase) -> None:
        source = problems.generator(6)
        for reduction, size in itertools.product(("sum", "mean"), (0.0, 0.3, 3.0)):
            loss = problems.local_loss(case, weighted=True, reduction=reduction, seed=source)
            theta = size * problems.normal(2, loss.model.dim, seed=source)
            largest = torch.linalg.eigvalsh(loss.hessian(theta))[:, -1]
            assert bool((largest <= loss.smoothness() * (1 + 1e-12)).all())


@pytest.mark.parametrize(
    "case",
    [
        problems.LossCase("least-squares"),
        problems.LossCase("logistic"),
        problems.LossCase("softmax", outputs=2),
    ],
)
def test_smoothness_is_reached_at_zero(case: problems.LossCase) -> None:
    loss = problems.local_loss(case, weighted=True, reduction="mean", seed=problems.generator(7))
    largest = torch.linalg.eigvalsh(loss.hessian(torch.zeros(2, loss.model.dim).double()))[:, -1]
    close(loss.smoothness(), largest, rtol=1e-12)


def test_mean_is_sum_over_total_weight() -> None:
    case = problems.LossCase("logistic")
    total = problems.local_loss(case, weighted=True, nu=0.0, seed=problems.generator(8))
    mean = problems.local_loss(
        case, weighted=True, nu=0.0, reduction="mean", seed=problems.generator(8)
    )
    theta = torch.ones((2, 3), dtype=torch.float64)
    close(mean.value(theta), total.value(theta) / total.weights.sum(dim=1), rtol=1e-13)


@pytest.mark.parametrize("name", ["logistic", "softmax"])
def test_scores_of_a_thousand_do_not_overflow(name: str) -> None:
    loss = losses.LOSSES[name]()
    scores = (
        torch.tensor([[1e3], [-1e3]]) if name == "logistic" else torch.tensor([[1e3, -1e3]] * 2)
    )
    labels = torch.tensor([1.0, 1.0]) if name == "logistic" else torch.tensor([0, 1])
    values = loss.values(scores, labels)
    assert values[0] == 0 and values[1] in (1e3, 2e3)
    assert torch.isfinite(loss.gradient(scores, labels)).all()
    assert torch.isfinite(loss.curvature(scores, torch.ones_like(scores))).all()


@pytest.mark.parametrize("score", [-700.0, -41.0, -38.0, -30.0, -20.5, -19.5, 0.0, 20.5, 41.0])
def test_no_digit_is_lost_far_from_zero(score: float) -> None:
    """-ln sigma(s) and sigma(s) sigma(-s), in which small terms stand beside large ones."""
    small = math.exp(-abs(score))
    value, curvature = max(0.0, -score) + math.log1p(small), small / (1 + small) ** 2
    scores = torch.tensor([[score]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    logistic, softmax = losses.Logistic(), losses.Softmax()
    assert float(logistic.values(scores, one)) == pytest.approx(value, rel=4e-16, abs=0)
    assert float(logistic.factors(scores)[0]) == pytest.approx(curvature, rel=2e-14, abs=0)
    pair = torch.tensor([[score, 0.0]], dtype=torch.float64)
    assert float(softmax.values(pair, torch.tensor([0]))) == pytest.approx(
        value, rel=1e-15, abs=1e-15
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_curvature_has_the_bits_of_two_sigmoids(dtype: torch.dtype) -> None:
    ends = torch.tensor([0.0, -0.0, 37.0, -37.0, 800.0, -800.0, math.inf, -math.inf], dtype=dtype)
    drawn = torch.randn(10**5, dtype=dtype, generator=problems.generator(4))
    scores = torch.cat([ends, drawn, 10 * drawn, 1e-8 * drawn])
    expected = losses._sigmoid(scores) * losses._sigmoid(-scores)
    assert torch.equal(losses.Logistic().factors(scores)[0], expected)
    assert expected[2] > 0, "from 37 on 1 - p is 0"


def test_two_layer_has_the_papers_dimension() -> None:
    assert TwoLayer(inputs=785, outputs=10, hidden=784).dim == 785 * 784 + 785 * 10


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("case", problems.LOSSES + problems.SOFT_LOSSES)
def test_two_layer_gradient(case: problems.LossCase, reduction: Reduction) -> None:
    source = problems.generator(9)
    linear = problems.local_loss(case, weighted=True, reduction=reduction, inputs=4, seed=source)
    loss = LocalLoss.build(
        TwoLayer(inputs=4, outputs=case.outputs, hidden=3),
        linear.loss,
        linear.features,
        linear.labels,
        weights=linear.weights,
        nu=0.3,
        reduction=reduction,
    )
    theta = problems.normal(2, loss.model.dim, seed=source)
    jacobian = reference.central_difference(loss.value, theta)
    gradient = loss.gradient(theta)
    for user in range(2):
        close(gradient[user], jacobian[user, user])
    assert not gradient.requires_grad


class TestBuild:
    def build(self, **changes: object) -> LocalLoss:
        arguments: dict[str, object] = {
            "features": torch.ones(2, 3, 4),
            "labels": torch.ones(2, 3),
            "weights": torch.ones(2, 3),
            "nu": 0.1,
        }
        arguments.update(changes)
        return LocalLoss.build(Linear(4, 1), losses.LeastSquares(), **arguments)

    def test_accepts(self) -> None:
        assert self.build().users == 2
        assert self.build(nu=0.0, weights=None).weights.tolist() == [[1.0] * 3] * 2

    @pytest.mark.parametrize("nu", [-1e-9, -1.0, math.nan, math.inf])
    def test_refuses_nu(self, nu: float) -> None:
        with pytest.raises(ValueError, match="nu"):
            self.build(nu=nu)

    @pytest.mark.parametrize("bad", [-1e-9, math.nan, math.inf])
    def test_refuses_weights(self, bad: float) -> None:
        weights = torch.ones(2, 3)
        weights[1, 2] = bad
        with pytest.raises(ValueError, match="weights"):
            self.build(weights=weights)

    @pytest.mark.parametrize(
        "changes",
        [
            {"labels": torch.ones(2, 4)},
            {"labels": torch.ones(3, 3)},
            {"weights": torch.ones(2, 4)},
            {"weights": torch.ones(2, 3, 1)},
            {"features": torch.ones(2, 5, 4)},
        ],
    )
    def test_refuses_shapes(self, changes: dict[str, Tensor]) -> None:
        with pytest.raises(ValueError, match="same number of users and points"):
            self.build(**changes)
