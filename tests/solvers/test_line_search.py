from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pfl_flower.solvers.line_search import line_search, shortened

ROUNDING = 4 * torch.finfo(torch.float64).eps
"""Of a value of 1."""
NEAR = 1e6 * ROUNDING
"""Largest slope at which gradients are asked."""


@dataclass(frozen=True)
class Case:
    """A function along a step: its values and the norms of its gradients by scale."""

    name: str
    value_at: Callable[[float], float]
    slope: float
    scale: float
    norm_at: Callable[[float], float] = lambda scale: torch.inf
    further: float | None = None
    """The scale where the search goes on while that lowers the value; the same when absent."""


def parabola(overshoot: float) -> tuple[Callable[[float], float], float]:
    """Values and slope of ``x^2/2`` from 1, where Newton's step is 1, along a longer one."""
    return lambda scale: 0.5 * (1 - overshoot * scale) ** 2, overshoot


CASES = [
    Case("Newton's own step", *parabola(1.0), scale=1.0),
    Case("far too long", *parabola(8.0), scale=1 / 8),
    Case("too long, and yet lower", *parabola(1.9), scale=1.0, further=1 / 2),
    Case("three times lower on the way", *parabola(7.9), scale=1 / 4, further=1 / 8),
    # f falls by slope (1 - overshoot/2): by 1.5e-4 and by 0.5e-4 of it.
    Case("just enough of what is promised", *parabola(2 - 3e-4), scale=1.0, further=1 / 2),
    Case("not enough of it", *parabola(2 - 1e-4), scale=1 / 2),
    Case("uphill", lambda s: 1 + s, -1.0, scale=0.0),
    Case("a slope that lies", lambda s: 1 + s, 1.0, scale=0.0),
    Case("no number", lambda s: torch.nan, torch.nan, scale=0.0),
    Case("no number far out", lambda s: torch.nan if s > 0.3 else 1 - s, 1.0, scale=1 / 4),
    Case("infinite far out", lambda s: torch.inf if s > 1e-15 else -s, 1.0, scale=2.0**-50),
    Case("0, which never rounds", lambda s: s, 1.0, scale=0.0),
    Case("calmer, values tell nothing", lambda s: 1.0, 0.0, scale=1.0, norm_at=lambda s: 1 - s),
    Case("just calm enough", lambda s: 1.0, 0.0, scale=1.0, norm_at=lambda s: 0.5),
    Case("calm enough when halved", lambda s: 1.0, 0.0, scale=1 / 2, norm_at=lambda s: 0.74),
    Case("never calm enough", lambda s: 1.0, 0.0, scale=0.0, norm_at=lambda s: 1 - 0.49 * s),
    Case("calm from 1/16 on", lambda s: 1.0, 0.0, 1 / 16, norm_at=lambda s: float(s > 0.07)),
    Case("calm from 1/32 on", lambda s: 1.0, 0.0, 0.0, norm_at=lambda s: float(s > 0.04)),
    Case("calmer and a little higher", lambda s: 1 + 1e-12 * s, NEAR, 1.0, norm_at=lambda s: 0.0),
    Case("calmer and higher", lambda s: 1 + s, 1.01 * NEAR, 0.0, norm_at=lambda s: 0.0),
    Case("lower", lambda s: 1 - 3 * ROUNDING * s, 3 * ROUNDING, 1.0, norm_at=lambda s: 0.0),
    Case("below zero", lambda s: -1 - 3 * ROUNDING * s, 0.9 * ROUNDING, scale=0.0),
    Case("promised less than a rounding", lambda s: 1 - 3 * ROUNDING * s, ROUNDING, scale=0.0),
    Case("equal, as good as promised", lambda s: 1.0, 3 * ROUNDING, scale=0.0),
    Case("equal and calmer", lambda s: 1.0, 3 * ROUNDING, scale=1.0, norm_at=lambda s: 0.0),
]


def search(cases: list[Case], further: bool, tried: list[float] | None = None) -> list[float]:
    """Search for all cases at once."""

    def column(numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64)

    def value_at(scale: float) -> Tensor:
        if tried is not None:
            tried.append(scale)
        return column([case.value_at(scale) for case in cases])

    return line_search(
        value_at,
        column([case.value_at(0.0) for case in cases]),
        column([case.slope for case in cases]),
        norm_at=lambda scale: column([case.norm_at(scale) for case in cases]),
        norm=torch.ones(len(cases), dtype=torch.float64),
        further=further,
    ).tolist()


def expected(case: Case, further: bool) -> float:
    return case.scale if case.further is None or not further else case.further


@pytest.mark.parametrize("further", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_how_far_it_goes(case: Case, further: bool) -> None:
    assert search([case], further) == [expected(case, further)]


@pytest.mark.parametrize("further", [False, True])
def test_many_at_once_are_searched_as_if_alone(further: bool) -> None:
    assert search(CASES, further) == [expected(case, further) for case in CASES]


@pytest.mark.parametrize(
    ("slope", "value", "most"), [(0.0, 1.0, 5), (1e-10, 1.0, 17), (1.0, 1.0, 50), (1.0, 0.0, 60)]
)
def test_it_gives_up_once_nothing_can_tell(slope: float, value: float, most: int) -> None:
    """Values tell down to a scale of ``ROUNDING/slope``, gradients down to 1/16."""
    tried: list[float] = []
    assert search([Case("up", lambda s: value + s, slope, 0.0)], False, tried) == [0.0]
    assert tried == [2.0**-number for number in range(most)]


def test_without_gradients_values_decide_alone() -> None:
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert float(line_search(lambda s: one, one, zero)) == 0
    assert float(line_search(lambda s: (1 - 2 * s) * one, one, 2 * one)) == 1


@pytest.mark.parametrize(
    ("length", "reach", "expected"), [(20.0, 1.0, 20.0), (21.0, 1.0, 20.0), (21.0, 1.1, 21.0)]
)
def test_steps_are_shortened_to_ten_times_the_reach(
    length: float, reach: float, expected: float
) -> None:
    step = torch.tensor([[0.6, -0.8], [0.0, 0.0]], dtype=torch.float64) * length
    found = shortened(step, torch.full((2,), reach, dtype=torch.float64))
    torch.testing.assert_close(found, step * (expected / length), rtol=1e-15, atol=0)
    assert torch.equal(shortened(step[0], torch.tensor(reach)), found[0])
