"""What a verdict is: limits, the worst value, and claims over seeds and cases."""

from __future__ import annotations

import math

import pytest

from pfl_flower.run.checks import (
    Claim,
    Limits,
    above,
    at_least,
    at_most,
    below,
    between,
    exactly,
)

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("limits", "text", "inside", "outside"),
    [
        (at_most(1 + 1e-6), "<= 1.000001", [-INF, 1.0, 1 + 1e-6], [1 + 2e-6, INF, NAN]),
        (below(1), "< 1", [-1e9, 0.999], [1.0, INF, NAN]),
        (at_least(1e-6), ">= 1e-06", [1e-6, INF], [0.0, -INF, NAN]),
        (above(0), "> 0", [1e-300, 1e9], [0.0, -1.0, NAN]),
        (exactly(0), "== 0", [0.0, -0.0], [1e-300, -1e-300, NAN]),
        (between(-0.1, 0.2), "in [-0.1, 0.2]", [-0.1, 0.0, 0.2], [-0.11, 0.21, INF, NAN]),
    ],
    ids=str,
)
def test_limits_admit_what_they_say(
    limits: Limits, text: str, inside: list[float], outside: list[float]
) -> None:
    assert str(limits) == text
    assert all(limits.admit(value) for value in inside)
    assert not any(limits.admit(value) for value in outside)


@pytest.mark.parametrize(
    ("limits", "values", "worst"),
    [
        # Both are so far below that the margins round to the same number.
        (at_most(1), [1e-20, 3e-20, 2e-20], 3e-20),
        (at_least(-1), [3e-20, 1e-20, 2e-20], 1e-20),
        (between(0, 1), [0.5, 0.2, 0.9], 0.9),
        (between(0, 1), [0.5, 0.1, 0.8], 0.1),
        (between(0, 1), [-0.1, 1.3, -0.2], 1.3),
        (exactly(0), [0.0, -1e-9, 1e-10], -1e-9),
        (at_most(1), [0.5, NAN, 2.0], NAN),
        (at_most(1), [], NAN),
    ],
)
def test_the_worst_value_is_shown_and_decides(
    limits: Limits, values: list[float], worst: float
) -> None:
    check = limits.check("name", values)
    assert check.value == pytest.approx(worst, abs=0, rel=0, nan_ok=True)
    assert check.passed == (bool(values) and all(limits.admit(value) for value in values))


FINALS = [{"a": 0.2, "b: one": 1.0, "b: two": 3.0}, {"a": 0.9, "b: one": 2.0, "c": "nan"}]


@pytest.mark.parametrize(
    ("claim", "value", "passed"),
    [
        (Claim("a", at_most(0.9)), 0.9, True),
        (Claim("a", at_most(0.5)), 0.9, False),
        (Claim("a", at_least(0.2)), 0.2, True),
        (Claim("a", at_least(0.5)), 0.2, False),
        # Every case counts, whichever a seed has; a longer name is another metric.
        (Claim("b", at_most(3)), 3.0, True),
        (Claim("b: one", at_most(2)), 2.0, True),
        (Claim("b", at_most(2.5)), 3.0, False),
        (Claim("b", between(1.9, 2.1), average=True), 2.0, True),
        (Claim("b: two", at_most(5)), NAN, False),
        (Claim("b: two", at_most(5), some=True), 3.0, True),
        (Claim("b: three", at_most(5), some=True), NAN, False),
        (Claim("b: o", at_most(5)), NAN, False),
        (Claim("c", at_most(5), some=True), NAN, False),
        (Claim("d", at_most(5), average=True), NAN, False),
        (Claim(lambda final: final["a"] + 1, at_most(2), "a and one"), 1.9, True),
    ],
)
def test_a_claim_is_about_every_seed(claim: Claim, value: float, passed: bool) -> None:
    check = claim.check(FINALS)  # type: ignore[arg-type]
    assert check.name == (claim.name or claim.metric)
    assert check.value == pytest.approx(value, nan_ok=True)
    assert check.passed == passed


def test_without_a_seed_no_claim_holds() -> None:
    for claim in (Claim("a", at_most(1)), Claim("a", at_least(0), average=True, some=True)):
        assert not claim.check([]).passed
