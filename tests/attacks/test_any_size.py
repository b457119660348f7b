"""Attacks, conversions and projections at sizes whose squares are no numbers, and at 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pfl_flower.attacks.attack import Observation, plausible_report
from pfl_flower.attacks.cga import CounterGradient
from pfl_flower.attacks.equivalence import model_from_gradient
from pfl_flower.attacks.model import ModelAttack
from pfl_flower.attacks.poisoning.matching import matching
from pfl_flower.attacks.poisoning.single_point import single_point
from pfl_flower.attacks.untargeted import (
    GaussianNoise,
    InnerProduct,
    LittleIsEnough,
    MinMax,
    SignFlip,
    Untargeted,
)
from pfl_flower.objective.losses import LeastSquares, Logistic
from pfl_flower.objective.regularizers import L2, SmoothL2, SquaredL2
from pfl_flower.objective.vectors import length
from pfl_flower.solvers.optimizer_steps import StepState, adam_step
from pfl_flower.support.seeding import generator
from tests.support.small_problems import aim_for

SEEN = tuple(range(5))
UNTARGETED: dict[str, Callable[[], Untargeted]] = {
    "sign-flip": lambda: SignFlip(datasets=SEEN),
    "gaussian": lambda: GaussianNoise(datasets=SEEN, seed=0, user=1),
    "little-is-enough": lambda: LittleIsEnough(datasets=SEEN, strength=0.3),
    "inner-product": lambda: InnerProduct(datasets=SEEN, strength=0.4),
    "min-max": lambda: MinMax(datasets=SEEN),
}


def drawn(dtype: torch.dtype = torch.float64) -> Tensor:
    whole = 100 * torch.randn((5, 3), generator=generator(0, "surrogates"), dtype=torch.float64)
    return whole.round().to(dtype)


def report(attack: Untargeted, rows: Tensor) -> Tensor:
    zero = torch.zeros_like(rows[0])
    seen = Observation(round=1, rho=zero, eta=1.0, eta_sum=0.0, accepted=zero, surrogates=rows)
    return attack.update(attack.init(zero), seen)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("part", [-0.96, -0.5, 0.5, 0.9])
@pytest.mark.parametrize("name", UNTARGETED)
def test_reports_scale_as_what_they_are_made_of(name: str, part: float, dtype: torch.dtype) -> None:
    """By a power of two, and so to the bit: at 0.9 of the exponents a square is infinite."""
    power = round(part * (127 if dtype == torch.float32 else 1023))
    rows = drawn(dtype)
    expected = report(UNTARGETED[name](), rows) * 2.0**power
    assert bool(expected.any())
    torch.testing.assert_close(
        report(UNTARGETED[name](), rows * 2.0**power), expected, rtol=0, atol=2.0 ** (power - 20)
    )
    assert bool(expected.isfinite().all())


@pytest.mark.parametrize("name", UNTARGETED)
def test_honest_reports_that_are_alike_or_nothing_leave_numbers(name: str) -> None:
    row = drawn()[0]
    for rows in (row.expand(5, -1), torch.zeros(5, 3), 5e-324 * torch.ones(5, 3).double()):
        assert bool(report(UNTARGETED[name](), rows).isfinite().all())
    if name in ("little-is-enough", "min-max"):
        torch.testing.assert_close(report(UNTARGETED[name](), row.expand(5, -1)), row)


RHO = torch.tensor([3.0, -4.0], dtype=torch.float64)


@pytest.mark.parametrize("eta", [1e-300, 1e-308, 5e-324])
@pytest.mark.parametrize("regularizer", [SquaredL2(lam=1.0), L2(lam=0.5), SmoothL2(lam=0.5)])
def test_however_small_the_step_cga_pulls_towards_its_target(
    regularizer: SquaredL2 | L2 | SmoothL2, eta: float
) -> None:
    attack = CounterGradient(target=torch.zeros(2).double())
    state = attack.init(RHO)
    # The second round: eta is below the last digit of the sum of what came before.
    for number, (sum_before, rho) in enumerate([(1.0, RHO), (1.0, RHO)], start=1):
        seen = Observation(
            round=number, rho=rho, eta=eta, eta_sum=sum_before, accepted=torch.zeros(2).double()
        )
        sent, state = plausible_report(attack, state, seen, regularizer)
        assert bool(sent.isfinite().all())
        torch.testing.assert_close(sent / length(sent), RHO / 5, rtol=1e-12, atol=0)
        if regularizer.radius < 1:
            assert float(length(sent)) == pytest.approx(0.5)


@pytest.mark.parametrize("lam", [1e-10, 0.3, 1e30])
@pytest.mark.parametrize("kind", [L2, SmoothL2])
@pytest.mark.parametrize("size", [1e-3, 0.5, 1.0, 2.0, 1e25, 1e200, 3e307])
def test_a_projection_keeps_the_direction_of_any_gradient(
    kind: type[L2], lam: float, size: float
) -> None:
    regularizer = kind(lam=lam)
    direction = torch.tensor([0.6, -0.8], dtype=torch.float64)
    got = regularizer.project(torch.stack([size * direction, 2 * size * direction]))
    expected = torch.stack([min(size, lam) * direction, min(2 * size, lam) * direction])
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)
    assert bool(regularizer.contains(got).all())
    largest = torch.full((1, 4), torch.finfo(torch.float64).max, dtype=torch.float64)
    torch.testing.assert_close(
        regularizer.project(largest), torch.full_like(largest, lam / 2), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("lam", [1e-200, 1e-8, 1.0, 1e200])
def test_models_are_found_in_balls_of_any_size(lam: float) -> None:
    """Half of lam is attained at ``r = 1/sqrt(3)``; the edge by nothing, but never from behind."""
    regularizer, target = SmoothL2(lam=lam), torch.zeros(2).double()
    direction = torch.tensor([0.6, -0.8], dtype=torch.float64)
    model = regularizer.attain(target, 0.5 * lam * direction)
    torch.testing.assert_close(model, -direction / 3**0.5, rtol=1e-14, atol=0)
    if 1e-100 < lam < 1e100:
        edge = model_from_gradient(regularizer, target, lam * direction)
        assert float(edge.value @ direction) < 0
        assert edge.residual <= min(1e-6, 0.5 * lam) * (1 + 1e-6)


@pytest.mark.parametrize("size", [1e100, 1e300])
def test_a_model_attack_far_away_keeps_its_direction_or_is_refused(size: float) -> None:
    zero = torch.zeros(4).double()
    away = torch.full((4,), size, dtype=torch.float64)
    seen = Observation(round=1, rho=zero, eta=1.0, eta_sum=0.0, accepted=zero)
    for regularizer in (L2(lam=2.0), SmoothL2(lam=2.0)):
        attack = ModelAttack(attack_model=away, regularizer=regularizer)
        sent = attack.update(attack.init(zero), seen)[0]
        torch.testing.assert_close(sent, -torch.ones(4).double(), rtol=1e-6, atol=0)
        too_far = ModelAttack(attack_model=1.5e308 / size * away, regularizer=regularizer)
        with pytest.raises(ValueError, match="length is finite"):
            too_far.init(zero)


@pytest.mark.parametrize("nu", [0.0, 0.1])
@pytest.mark.parametrize("bias", [False, True])
def test_a_single_point_that_needs_to_do_nothing(bias: bool, nu: float) -> None:
    """The pull is 0 where g is ``2 nu theta_spade``: 0/0 made a point that was not a number."""
    aim = aim_for(LeastSquares(), bias=bias, nu=nu)
    aim = replace(aim, gradient=2 * nu * aim.attack_model)
    data = single_point(aim)
    assert bool(data.features.isfinite().all() and data.labels.isfinite().all())
    assert data.feasible


@pytest.mark.parametrize(("dtype", "huge"), [(torch.float32, 1e25), (torch.float64, 1e160)])
def test_a_local_step_that_adam_cannot_take_is_no_number(dtype: torch.dtype, huge: float) -> None:
    """Its second moment would be infinite, and the user would stand still without a word."""
    theta = torch.zeros((2, 2), dtype=dtype)
    gradient = torch.tensor([[huge, 1.0], [1.0, 1.0]], dtype=dtype)
    moved, state = adam_step(theta, gradient, StepState.init(theta), 0.1)
    again, _ = adam_step(moved, torch.ones_like(gradient), state, 0.1)
    for after in (moved, again):
        assert bool(after[0].isnan().all())
        assert bool(after[1].isfinite().all())


@pytest.mark.parametrize("name", ["attack_model", "gradient"])
@pytest.mark.parametrize("value", [1e71, torch.inf, torch.nan])
def test_an_aim_beyond_what_can_be_multiplied_is_refused(name: str, value: float) -> None:
    """Singular values of such a design were no numbers, and the traceback was torch's."""
    aim = aim_for(Logistic())
    with pytest.raises(ValueError, match=f"{name}: expected numbers up to 1e\\+70"):
        replace(aim, **{name: value * getattr(aim, name)})


@pytest.mark.parametrize("scale", [0.0, 1e-200, 1e68])
@pytest.mark.parametrize("bias", [False, True])
def test_matching_answers_for_any_model_up_to_there(scale: float, bias: bool) -> None:
    aim = aim_for(Logistic(), bias=bias, free=2)
    for name in ("attack_model", "gradient"):
        some = replace(aim, **{name: scale * getattr(aim, name)})
        data = matching(some, generator=generator(0, "matching"), rounds=2)
        assert bool(data.features.isfinite().all() and data.weights.isfinite().all())
        assert data.residual == data.residual
