"""What poisoned data must achieve where theta_spade is rho itself: l2's kink."""

from __future__ import annotations

import pytest
import torch

from pfl_flower.attacks.poisoning.aim import Aim
from pfl_flower.objective.losses import Logistic
from pfl_flower.objective.models import Linear
from pfl_flower.objective.regularizers import L2, Regularizer, SmoothL2, SquaredL2

RHO = torch.tensor([1.0, 2.0], dtype=torch.float64)
WANTED = torch.tensor([0.3, -0.4], dtype=torch.float64)
OTHER = RHO + torch.tensor([3.0, 4.0], dtype=torch.float64)


def aim(coupling: Regularizer, spade: torch.Tensor, wanted: torch.Tensor | None) -> torch.Tensor:
    made = Aim.at(coupling, RHO, spade, model=Linear(2, 1), loss=Logistic(), wanted=wanted)
    return made.gradient


@pytest.mark.parametrize(
    ("coupling", "spade", "expected"),
    [
        (L2(lam=2.0), RHO, WANTED),
        (L2(lam=0.25), RHO, WANTED / 2),
        (L2(lam=2.0), OTHER, torch.tensor([-1.2, -1.6]).double()),
        (SquaredL2(lam=0.5), RHO, torch.zeros(2).double()),
        (SmoothL2(lam=2.0), RHO, torch.zeros(2).double()),
    ],
    ids=["inside", "outside", "off the kink", "squared", "smooth"],
)
def test_at_a_kink_the_data_hold_the_gradient_that_is_wanted(
    coupling: Regularizer, spade: torch.Tensor, expected: torch.Tensor
) -> None:
    torch.testing.assert_close(aim(coupling, spade, WANTED), expected)


def test_at_a_kink_something_must_be_wanted() -> None:
    with pytest.raises(ValueError, match="wanted: expected a gradient"):
        aim(L2(lam=2.0), RHO, None)
    assert aim(L2(lam=2.0), OTHER, None).norm() == pytest.approx(2.0)
