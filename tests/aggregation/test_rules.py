"""Aggregation rules: their laws, and independent implementations of each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfl_flower.aggregation.combination import combine, total
from pfl_flower.aggregation.rows import Rows
from pfl_flower.aggregation.rules import bind, mixed, multi_krum, trimmed_mean
from pfl_flower.aggregation.table import AGGREGATIONS, most_tolerated
from pfl_flower.objective.regularizers import L2
from pfl_flower.support.seeding import generator
from tests.support import reference_rules
from tests.support.runs import configure, play

F, HONEST, DIM = 2, 9, 4
PLAIN = [name for name, row in AGGREGATIONS.items() if not row.rounds]
CASES = [
    pytest.param(name, mixing, id=f"{name}{' mixed' if mixing else ''}")
    for name in PLAIN
    for mixing in (False, True)
]
"""Every rule of plain rows, on the rows as they are and mixed."""
WITHSTAND = [case for case in CASES if case.values[0] != "sum"]


TO_ZERO = ("qrmed", "static-clipping", "adaptive-clipping")
"""Rules that measure from 0: rows that are moved are not longer or shorter by as much."""


def rule(name: str, mixing: bool = False, f: int = F):  # type: ignore[no-untyped-def]
    return bind(AGGREGATIONS.load(name), tolerance=f, mixing=mixing)


def sample(seed: int, rows: int = HONEST + F, dim: int = DIM) -> Tensor:
    draw = generator(seed, "rows", rows, dim)
    scales = torch.tensor([1.0, 0.1, 10.0, 3.0], dtype=torch.float64)[:dim]
    return scales * (1 + torch.randn((rows, dim), generator=draw, dtype=torch.float64))


def close(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> bool:
    return bool(torch.linalg.vector_norm(one - other) <= tolerance * (1 + other.abs().max()))


@pytest.mark.parametrize(("name", "mixing"), CASES)
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_users_does_not_matter(name: str, mixing: bool, seed: int) -> None:
    rows = sample(seed)
    order = torch.randperm(len(rows), generator=generator(seed, "order"))
    assert close(rule(name, mixing)(rows[order]), rule(name, mixing)(rows), 1e-12)


@pytest.mark.parametrize(
    ("name", "mixing"), [case for case in CASES if case.values[0] not in TO_ZERO]
)
def test_a_shift_of_all_rows_shifts_the_mean(name: str, mixing: bool) -> None:
    rows, shift = sample(1), torch.tensor([3.0, -2.0, 0.5, 100.0], dtype=torch.float64)
    apply = rule(name, mixing)
    assert close(apply(rows + shift), apply(rows) + len(rows) * shift)


@pytest.mark.parametrize(("name", "mixing"), CASES)
@pytest.mark.parametrize("scale", [-2.0, 1e-6, 1e6, 1e-200, 1e150])
def test_a_scale_of_all_rows_scales_the_direction(name: str, mixing: bool, scale: float) -> None:
    rows = sample(2)
    apply = rule(name, mixing)
    assert close(apply(scale * rows) / scale, apply(rows))


@pytest.mark.parametrize(("name", "mixing"), CASES)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_on_equal_rows_every_rule_is_the_sum(name: str, mixing: bool, count: int) -> None:
    row = sample(3)[0]
    rows = row.expand(count, -1)
    assert close(rule(name, mixing)(rows), total(rows), 1e-14)
    assert not rule(name, mixing)(torch.zeros_like(rows)).any()


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
@pytest.mark.parametrize("mixing", [False, True])
def test_coordinates_stay_within_the_honest_ones(name: str, mixing: bool) -> None:
    rows = sample(4)
    rows[:F] = torch.tensor([[1e6, -1e6, 1e6, -1e6], [1e7, 1e7, -1e7, 1e-9]])
    honest = rows[F:]
    mean = rule(name)(rows) / len(rows)
    assert (mean >= honest.min(dim=0).values).all()
    assert (mean <= honest.max(dim=0).values).all()


SENT = [
    [[1e12] * DIM, [1e12] * DIM],
    [[1e12] * DIM, [-1e12] * DIM],
    [[1e307, -1e307, 1e307, 0.0], [1e308] * DIM],
    [[1.7e308] * DIM, [-1.7e308] * DIM],
    [[1.7e308] * DIM, [1.7e308] * DIM],
    [[5e-324] * DIM, [0.0] * DIM],
    [[30.0, 3.0, 300.0, 90.0]] * 2,
]


@pytest.mark.parametrize(("name", "mixing"), WITHSTAND)
@pytest.mark.parametrize("sent", SENT, ids=lambda sent: f"{sent[0][0]:g}, {sent[1][0]:g}")
def test_whatever_f_rows_say_the_direction_stays_near_the_honest_mean(
    name: str, mixing: bool, sent: list[list[float]]
) -> None:
    rows = sample(5)
    rows[0], rows[4] = torch.tensor(sent, dtype=torch.float64)
    honest = rows[[i for i in range(len(rows)) if i not in (0, 4)]]
    mean = rule(name, mixing)(rows) / len(rows)
    spread = torch.linalg.vector_norm(honest - honest.mean(dim=0), dim=1).max()
    assert torch.linalg.vector_norm(mean - honest.mean(dim=0)) <= 2 * spread


def test_the_sum_breaks_down_at_one_row() -> None:
    rows = sample(5)
    rows[1] = 1e12
    assert total(rows).abs().max() > 1e11


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_finite_rows_never_silence_the_others(data: st.DataObject) -> None:
    """What f users send is refused or counted; the honest rows always count."""
    name, mixing = data.draw(st.sampled_from([case.values for case in WITHSTAND]))
    number = st.floats(allow_nan=False, allow_infinity=False, width=64)
    sent = data.draw(st.lists(st.lists(number, min_size=4, max_size=4), min_size=F, max_size=F))
    rows = sample(6)
    rows[:F] = torch.tensor(sent, dtype=torch.float64)
    direction, kept, _ = combine(
        Rows.of(dict(enumerate(rows))),
        torch.zeros(DIM, dtype=torch.float64),
        0.1,
        rule(name, mixing),
    )
    assert set(range(F, len(rows))) <= set(kept)
    assert direction.abs().max() < 1e4


@pytest.mark.parametrize("count", [HONEST + F, HONEST + F + 1])
@pytest.mark.parametrize("name", [name for name in PLAIN if name != "sum"])
@pytest.mark.parametrize("seed", range(4))
def test_rules_agree_with_slow_ones(name: str, count: int, seed: int) -> None:
    # The geometric median is where an iteration rests that gains a digit in some ten steps.
    # What the regularised one is held against is a minimiser's, to half of the digits.
    tolerance = 1e-9 if name in ("geometric-median", "qrmed") else 1e-12
    rows = sample(seed, count)
    slow = getattr(reference_rules, name.replace("-", "_"))
    expected = torch.from_numpy(np.asarray(slow(rows.numpy(), F)))
    assert close(rule(name)(rows) / count, expected, tolerance)


@pytest.mark.parametrize("count", [3, 5, 12])
def test_mixing_agrees_with_a_slow_one(count: int) -> None:
    f = min(F, (count - 1) // 2)
    rows = sample(7, count)
    expected = torch.from_numpy(reference_rules.mixed(rows.numpy(), f))
    assert close(mixed(rows, tolerance=f), expected, 1e-12)


def test_the_geometric_median_of_a_majority_is_its_point() -> None:
    rows = sample(8)
    rows[:6] = rows[0]
    assert close(rule("geometric-median")(rows) / len(rows), rows[0], 1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("influence", [0.5, 5.0])
def test_one_row_moves_the_regularised_median_as_one_user_moves_rho_under_l2(
    seed: int, influence: float
) -> None:
    """The direction is the sum of l2 reports, and each adds no more than lam = influence."""
    rows = sample(seed)
    qrmed = bind(AGGREGATIONS.load("qrmed"), tolerance=F, influence=influence)
    direction, k = qrmed(rows), len(rows)
    reports = L2(lam=influence).grad_rho(-direction / k, -rows)
    away = torch.linalg.vector_norm(rows - direction / k, dim=1) > 1e-9
    # At the kink, where a user holds rho itself, its report is what the others leave.
    assert (
        float((direction - reports[away].sum(dim=0)).norm()) <= influence * (k - away.sum()) + 1e-9
    )
    for sent in ([0.0] * DIM, [1e9] * DIM, [-1e3, 1e300, 1.0, 0.0]):
        other = rows.clone()
        other[3] = torch.tensor(sent, dtype=torch.float64)
        assert float((qrmed(other) - direction).norm()) <= 2 * influence * (1 + 1e-9)
    farthest = (qrmed(other) - direction).norm()
    assert float(farthest) > 0.2 * influence


def test_a_row_that_is_the_regularised_median_is_it_to_the_bit() -> None:
    """By hand: others pull (1, 0) against k z = (0.8, 0), which one row can hold; mirrored, not."""
    qrmed = AGGREGATIONS.load("qrmed")
    row = torch.tensor([0.2, 0.0], dtype=torch.float64)
    out = torch.tensor([[9.0, 0.0], [0.2, 9.0], [0.2, -9.0]], dtype=torch.float64)
    # In as few steps as it takes to ask.
    assert torch.equal(qrmed(torch.cat([row[None], out]), influence=1.0, steps=8), 4 * row)
    mirrored = torch.cat([row[None], 2 * row - out])
    assert float((qrmed(mirrored, influence=1.0) - 4 * row).norm()) > 0.1


def test_a_clipped_sum_moves_by_no_more_than_the_radius() -> None:
    rows = sample(1)
    clip = bind(AGGREGATIONS.load("static-clipping"), tolerance=F, radius=2.0)
    for size in (1e-3, 1.0, 1e6):
        other = rows.clone()
        other[0] = -size * rows[1]
        without = rows.clone()
        without[0] = 0
        moved = float((clip(other) - clip(without)).norm())
        assert moved == pytest.approx(min(2.0, float(other[0].norm())), rel=1e-9)


def test_multi_krum_lies_between_krum_and_the_sum() -> None:
    rows = sample(9)
    one, every = (multi_krum(rows, tolerance=F, selected=m) for m in (1, len(rows)))
    assert close(one, rule("krum")(rows), 1e-12)
    assert close(every, total(rows), 1e-12)


def test_a_wide_clip_is_the_sum_and_a_narrow_one_the_median() -> None:
    rows = sample(10)
    clip = AGGREGATIONS.load("centred-clipping")
    assert close(bind(clip, tolerance=F, radius=1e9)(rows), total(rows))
    assert close(bind(clip, tolerance=F, radius=1e-12)(rows), rule("median")(rows))


@pytest.mark.parametrize(
    ("name", "mixing", "users", "most"),
    [
        ("trimmed-mean", False, 11, 5),
        ("trimmed-mean", False, 12, 5),
        ("krum", False, 11, 4),
        ("krum", True, 12, 4),
        ("multi-krum", False, 5, 1),
        ("sum", True, 12, 5),
        ("sum", False, 12, None),
        ("median", False, 12, None),
    ],
)
def test_what_a_rule_can_tolerate(name: str, mixing: bool, users: int, most: int | None) -> None:
    assert most_tolerated(name, users, mixing=mixing) == most
    if most is not None and name in ("krum", "multi-krum"):
        assert 2 * most + 2 < users <= 2 * (most + 1) + 2
    elif most is not None:
        assert 2 * most < users <= 2 * (most + 1)


def test_a_strategy_uses_the_rule_and_its_tolerance() -> None:
    changes = {"aggregation": "trimmed-mean", "aggregation_mixing": True, "attack": "cga"}
    record = play(configure(**changes, aggregation_tolerance=2, rounds=1))[0]
    rows = torch.stack([record.accepted[user] for user in range(5)])
    expected = trimmed_mean(mixed(rows, tolerance=2), tolerance=2)
    assert close(record.rho, -record.eta * expected, 1e-12)
    assert not close(record.rho, -record.eta * rule("trimmed-mean", True, 1)(rows), 1e-6)


def own_rule(rows: Tensor, tolerance: int) -> Tensor:
    """A rule that wants to know f."""
    return tolerance * rows.sum(dim=0)


def test_a_rule_of_ones_own_is_told_what_it_asks_for() -> None:
    record = play(configure(aggregation=f"{__name__}:own_rule", strategic_users="3,4", rounds=1))[0]
    rows = torch.stack([record.accepted[user] for user in range(5)])
    assert torch.allclose(record.rho, -record.eta * 2 * rows.sum(dim=0), rtol=1e-12)
    assert math.isfinite(float(record.rho.sum()))
