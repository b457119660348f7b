"""Rules on rows that tie, coincide, or reach the ends of the range of numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfl_flower.aggregation.combination import combine, total
from pfl_flower.aggregation.kernels import distances
from pfl_flower.aggregation.rows import Rows
from pfl_flower.aggregation.rules import centred_clipping, krum, mixed, multi_krum
from pfl_flower.aggregation.server_steps import ServerOptimizer
from pfl_flower.aggregation.table import most_tolerated
from pfl_flower.aggregation.ties import mean_of_least, means_of_nearest
from pfl_flower.support.seeding import generator
from tests.aggregation.test_rules import CASES, WITHSTAND, close, rule

LARGEST = torch.finfo(torch.float64).max
SETS = ("median", "trimmed-mean", "krum", "multi-krum")
"""Rules whose result is a function of the set of rows to the bit: none of their sums is in the
order of the users."""


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


MOSTLY_ZERO = column(1e6, 0.1, 0.2, *[0.0] * 8)
MOST_ALIKE = column(*[-1.0] * 3, *[1.0] * 5)
FAR_PAIR = column(-1e308, 1e308, 1.0, 2.0, 4.0, 2.5)


@pytest.mark.parametrize(
    ("name", "f", "rows", "mean"),
    [
        ("krum", 1, MOSTLY_ZERO, 0.0),
        ("multi-krum", 1, MOSTLY_ZERO, 0.03),
        ("krum", 1, MOST_ALIKE, 1.0),
        # Seven of eight are kept: all that are 1, and two of the three that are -1.
        ("multi-krum", 1, MOST_ALIKE, 3 / 7),
        # Every two of three rows are nearest to each other and tie: the middle of both.
        ("krum", 0, column(9.0, 0.0, 1.0), 0.5),
        ("krum", 1, column(0.0, 0.0, 0.0, 0.0, 0.0), 0.0),
        ("krum", 1, column(7.0), 7.0),
        ("krum", 1, column(3.0, 5.0), 4.0),
        ("multi-krum", 1, column(3.0, 5.0), 4.0),
        # Four of six equal a row: two who tie, left and right of it, share one place.
        ("multi-krum", 1, column(5.0, -5.0, 0.0, 0.0, 0.0, 0.0), 0.0),
        ("krum", 1, FAR_PAIR, 2.5),
        ("krum", 1, 1e-300 * FAR_PAIR[2:], 2e-300),
        ("krum", 2, column(1e200, -1e200, 5.0, 1.0, 2.0, 3.0, 2.1, 900.0), 3.0),
        ("median", 1, column(*[5e-324] * 3), 5e-324),
        ("geometric-median", 1, column(*[5e-324] * 5), 5e-324),
        ("trimmed-mean", 1, column(*[5e-324] * 11), 5e-324),
        ("centred-clipping", 1, column(*[5e-324] * 11), 5e-324),
        ("krum", 1, column(*[5e-324] * 11), 5e-324),
        ("sum", 1, column(LARGEST, LARGEST, -LARGEST), (1 - 1e-15) * LARGEST / 3),
        ("geometric-median", 1, column(LARGEST, -LARGEST, -LARGEST / 4, 0.0, LARGEST / 4), 0.0),
        ("centred-clipping", 1, column(LARGEST, -LARGEST, -LARGEST / 4, 0.0, LARGEST / 4), 0.0),
    ],
)
def test_what_a_rule_makes_of_few_numbers(name: str, f: int, rows: Tensor, mean: float) -> None:
    got = rule(name, f=f)(rows)
    torch.testing.assert_close(got, column(len(rows) * mean)[0], rtol=1e-12, atol=1e-320)
    torch.testing.assert_close(rule(name, f=f)(rows.flip(0)), got, rtol=1e-15, atol=1e-320)


def test_neighbours_who_tie_share_the_last_place() -> None:
    # Of 0, 5 and -5 two are kept near 0: itself, and half of each of the others.
    assert mixed(column(5.0, 0.0, -5.0), tolerance=1).tolist() == [[2.5], [0.0], [-2.5]]


@pytest.mark.parametrize("kept", [1, 3, 5, 7])
@pytest.mark.parametrize("copies", [0, 1, 3])
def test_means_of_the_nearest_are_those_row_by_row_to_the_bit(kept: int, copies: int) -> None:
    """Rows that are one row tie, others at equal distances too: at the last place and before it."""
    drawn = torch.randn(4, 70, generator=generator(1, "ties"), dtype=torch.float64)
    axis = torch.eye(70, dtype=torch.float64)[:3]
    rows = torch.cat([drawn, axis, -axis[:1], drawn[:1].expand(copies, -1)])
    away = distances(rows)
    each = [mean_of_least(rows, row, kept) for row in away]
    assert torch.equal(means_of_nearest(rows, away, kept), torch.stack(each))


def test_mixed_rows_stay_among_the_rows() -> None:
    # Three times the largest number's third is rounded beyond it.
    rows = column(0.0, LARGEST, LARGEST, LARGEST)
    assert mixed(rows, tolerance=1).isfinite().all()
    assert bool(mixed(rows / 4, tolerance=1).max() <= LARGEST / 4)


ROWS = st.integers(1, 3).flatmap(
    lambda d: st.lists(
        st.lists(st.integers(-3, 3).map(float), min_size=d, max_size=d), min_size=1, max_size=12
    )
)
"""Few whole numbers, so that rows coincide and scores tie."""


@pytest.mark.parametrize(("name", "mixing"), CASES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rows_are_a_set(name: str, mixing: bool, data: st.DataObject) -> None:
    rows = torch.tensor(data.draw(ROWS), dtype=torch.float64)
    order = data.draw(st.permutations(range(len(rows))))
    apply = rule(name, mixing, f=data.draw(st.integers(1, 5)))
    one, other = apply(rows), apply(rows[order])
    if name in SETS:
        assert torch.equal(one, other)
    else:
        assert close(one, other, 1e-9)


def test_the_last_rows_of_bulyan_tie_though_rounding_differs() -> None:
    """Mixed rows are equal in pairs but for their last digits, and two pairs wait for one place."""
    corner = [[0, 0], [0, 0], [0, 0], [0, 1], [0, 1], [0, -3], [1, 0], [2, -3], [3, 1], [3, 2]]
    rows = torch.tensor([*corner, [-3, 0], [-3, 3]], dtype=torch.float64)
    apply = rule("bulyan", mixing=True, f=2)
    found = [
        apply(rows[torch.randperm(12, generator=generator(seed, "order"))]) for seed in range(30)
    ]
    assert all(close(one, found[0], 1e-9) for one in found)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_krum_takes_rows_whose_exact_score_is_the_lowest(data: st.DataObject) -> None:
    numbers = st.floats(-8, 8).map(lambda x: x * 2.0 ** data.draw(st.integers(-3, 3)))
    rows = data.draw(st.lists(numbers, min_size=5, max_size=11))
    f = data.draw(st.integers(1, (len(rows) - 3) // 2))
    exact = [Fraction(row) for row in rows]
    scores = [
        sum(sorted((row - other) ** 2 for other in exact)[1 : len(rows) - f - 1]) for row in exact
    ]
    lowest = min(scores) * (1 + Fraction(1, 10**12))
    best = [row for row, score in zip(rows, scores, strict=True) if score <= lowest]
    got = float(krum(column(*rows), tolerance=f)) / len(rows)
    slack = 1e-15 * max(map(abs, best))
    assert min(best) - slack <= got <= max(best) + slack
    kept = sorted(range(len(rows)), key=lambda i: scores[i])[: len(rows) - f]
    last = scores[kept[-1]]
    if all(abs(score - last) > last / 10**12 for i, score in enumerate(scores) if i not in kept):
        mean = float(sum(exact[i] for i in kept) / len(kept))
        many = float(multi_krum(column(*rows), tolerance=f)) / len(rows)
        assert many == pytest.approx(mean, rel=1e-13, abs=1e-13 * max(map(abs, rows)))


SPREAD = torch.tensor([1.0, 0.1, 10.0], dtype=torch.float64)


def spread_rows(count: int, seed: int) -> Tensor:
    return SPREAD * torch.randn((count, 3), generator=generator(seed, count), dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "mixing", "power"),
    [
        (*case.values, power)
        for case in CASES
        for power in (-1040, -980, -600, 300, 1010, 1015)
        # Mixed rows are rows: what is no multiple of the least number is rounded.
        if power > -1000 or not case.values[1]
    ],
)
def test_a_power_of_two_scales_to_the_bit(name: str, mixing: bool, power: int) -> None:
    """Units are powers of two, and so nothing is rounded where numbers overflow or vanish."""
    whole = (2.0**8 * spread_rows(8, 1)).round() / 2.0**8
    apply = rule(name, mixing)
    half = 2.0 ** (power // 2)
    expected = apply(whole) * half * (2.0**power / half)
    got = apply(whole * half * (2.0**power / half))
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-324 * (power < -900))


@pytest.mark.parametrize(("name", "mixing"), CASES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_finite_rows_make_a_finite_direction_if_it_is_a_number(
    name: str, mixing: bool, data: st.DataObject
) -> None:
    number = st.floats(allow_nan=False, allow_infinity=False)
    count, dim = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
    rows = torch.tensor(
        data.draw(
            st.lists(st.lists(number, min_size=dim, max_size=dim), min_size=count, max_size=count)
        ),
        dtype=torch.float64,
    )
    apply = rule(name, mixing)
    small = apply(rows / 2.0**20)
    assert bool(small.isfinite().all())
    representable = small.abs() < LARGEST / 2.0**20
    assert bool(apply(rows).isfinite()[representable].all())


THREE_OF_NINE = [case for case in WITHSTAND if (most_tolerated(case.values[0], 9) or 3) >= 3]


@pytest.mark.parametrize(("name", "mixing"), THREE_OF_NINE)
@pytest.mark.parametrize("size", [1e-200, 1.0, 1e100])
@pytest.mark.parametrize("sent", [1e200, 1e308, LARGEST])
@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, 1)])
def test_rows_of_any_size_do_not_hide_how_the_others_differ(
    name: str, mixing: bool, size: float, sent: float, signs: tuple[int, ...]
) -> None:
    """With 3 of 9 strategic more than half of all distances are theirs."""
    honest = size * spread_rows(6, 2)
    strategic = sent * column(*signs).expand(3, 3)
    rows = torch.cat([strategic, honest])
    mean = rule(name, mixing, f=3)(rows) / len(rows)
    away = torch.linalg.vector_norm((mean - honest.mean(dim=0)) / size)
    spread = torch.linalg.vector_norm((honest - honest.mean(dim=0)) / size, dim=1).max()
    assert away <= 3 * spread
    if name == "krum" and not mixing:
        # The k - f - 2 = 4 nearest of an honest row are honest: a plain sum of squares will do.
        plain = (honest / size).numpy()
        scores = [np.sort(((plain - row) ** 2).sum(axis=1))[:5].sum() for row in plain]
        assert close(mean / size, honest[int(np.argmin(scores))] / size, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "mixing"), CASES)
def test_equal_rows_are_their_sum_at_both_ends_of_the_range(
    name: str, mixing: bool, dtype: torch.dtype
) -> None:
    limits = torch.finfo(dtype)
    for value in (limits.max / 16, limits.tiny, limits.smallest_normal / 2**20):
        rows = torch.full((11, 4), value, dtype=dtype)
        got = rule(name, mixing)(rows)
        torch.testing.assert_close(got, 11 * rows[0], rtol=4 * limits.eps, atol=0)


def test_a_radius_is_a_length_and_scales() -> None:
    rows = spread_rows(9, 3)
    expected = centred_clipping(rows, radius=0.5)
    for scale in (2.0**1018, 2.0**-1010):
        torch.testing.assert_close(
            centred_clipping(scale * rows, radius=0.5 * scale) / scale, expected, rtol=0, atol=0
        )


@pytest.mark.parametrize("ids", [(0, 1, 2), (2, 1, 0)])
def test_large_rows_are_refused_before_small_ones_whoever_sent_them(ids: tuple[int, ...]) -> None:
    values = column(1.7e308, 1.6e308, 1.0)
    rows = Rows(torch.tensor(ids), values)
    _, kept, rejections = combine(rows, torch.zeros(1, dtype=torch.float64), 1.0, total)
    assert [fault.user for fault in rejections] == [ids[0]]
    assert set(kept) == {ids[1], ids[2]}


@pytest.mark.parametrize(("dtype", "huge"), [(torch.float32, 1e20), (torch.float64, 1e160)])
def test_a_row_that_would_stop_adam_for_ever_is_refused(dtype: torch.dtype, huge: float) -> None:
    """The square of such a row is infinite, and with it every later step is 0."""
    optimizer, rho = ServerOptimizer("adam"), torch.zeros(1, dtype=dtype)
    rows = Rows.of({0: torch.full((1,), huge, dtype=dtype), 1: torch.ones(1, dtype=dtype)})

    def takes(direction: Tensor) -> bool:
        return optimizer.takes(rho, direction, 0.1)

    direction, kept, rejections = combine(rows, rho, 0.1, takes=takes)
    assert list(kept) == [1]
    assert "moments" in rejections[0].detail
    moved = optimizer.step(rho, direction, 0.1)
    assert float(moved) == pytest.approx(-0.1)
