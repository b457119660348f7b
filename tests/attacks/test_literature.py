"""Attacks fitted to a rule, and those that hide among the honest: numbers, laws and signs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_flower.aggregation import rules
from pfl_flower.aggregation.combination import total
from pfl_flower.attacks.among_honest import FangTrimmedMean, Mimic, MinSum
from pfl_flower.attacks.attack import Attack, Observation
from pfl_flower.attacks.fitted import STRENGTHS, FangKrum, Fitted, FittedDeviation, FittedMean
from pfl_flower.support.seeding import generator

F, HONEST, DIM = 2, 9, 7
KRUM = partial(rules.krum, tolerance=F)
RULES = {
    "sum": total,
    "median": rules.median,
    "krum": KRUM,
    "clipping": partial(rules.centred_clipping, radius=0.5),
}


def honest(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = generator(seed, "honest reports")
    centre = torch.tensor([1.0, -1.0] * DIM)[:DIM].double()
    return (centre + torch.randn((HONEST, DIM), generator=draw, dtype=torch.float64)).to(dtype)


def seen(rows: Tensor, round: int = 1) -> Observation:
    zero = torch.zeros_like(rows[0])
    return Observation(
        round=round, rho=zero, eta=1.0, eta_sum=0.0, accepted=zero, honest=rows, surrogates=rows
    )


def said(attack: Attack[Any], rows: Tensor, round: int = 1) -> Tensor:
    return attack.update(attack.init(torch.zeros_like(rows[0])), seen(rows, round))[0]


def fitted(kind: type[Fitted], rule: Any, datasets: tuple[int, ...] = ()) -> Fitted:
    return kind(datasets=datasets, rule=rule, copies=F)


ALL: dict[str, Attack[Any]] = {
    "little-is-enough": fitted(FittedDeviation, KRUM),
    "inner-product": fitted(FittedMean, KRUM),
    "fang-krum": FangKrum(datasets=(), copies=F),
    "min-sum": MinSum(datasets=()),
    "fang-trimmed-mean": FangTrimmedMean(datasets=(), seed=1, user=3),
    "fang-trimmed-mean, guessed": FangTrimmedMean(datasets=tuple(range(HONEST)), seed=1, user=3),
    "mimic": Mimic(datasets=(), seed=1),
}


def strayed(rule: Any, rows: Tensor, report: Tensor) -> float:
    together = torch.cat([rows, report.expand(F, -1)])
    return float((rule(together) - len(together) * rows.mean(dim=0)).norm())


@pytest.mark.parametrize("kind", [FittedDeviation, FittedMean])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", range(2))
def test_no_strength_of_either_sign_leads_a_rule_farther(
    kind: type[Fitted], name: str, seed: int
) -> None:
    attack, rows = fitted(kind, RULES[name]), honest(seed)
    found = strayed(RULES[name], rows, said(attack, rows))
    base, along = attack.line(rows)
    assert all(strayed(RULES[name], rows, base + z * along) <= found for z in STRENGTHS)


def test_the_sign_is_the_one_that_harms() -> None:
    """A rule that looks one way alone: what is sent must go that way, whichever it is."""
    for sign in (1.0, -1.0):
        for kind in (FittedDeviation, FittedMean):
            attack = fitted(kind, lambda rows, sign=sign: (sign * rows).clamp(min=0).sum(dim=0))
            rows = honest().abs()
            base, along = attack.line(rows)
            strength = (said(attack, rows) - base) / along
            assert bool((strength * sign > 0).all())
            assert strength.std() < 1e-9


def test_the_deviation_and_the_mean() -> None:
    rows = honest()
    base, along = fitted(FittedDeviation, total).line(rows)
    torch.testing.assert_close(base, rows.mean(dim=0))
    torch.testing.assert_close(along, rows.std(dim=0, correction=1))
    base, along = fitted(FittedMean, total).line(rows)
    assert not bool(base.any())
    torch.testing.assert_close(along, rows.mean(dim=0))


@pytest.mark.parametrize("seed", range(4))
def test_krum_picks_fangs_report_and_not_one_twice_as_long(seed: int) -> None:
    # Nearer to 0 than to each other: there Krum picks a short report.
    attack, rows = FangKrum(datasets=(), copies=F), honest(seed) - 0.9 * honest(seed).mean(dim=0)
    report = said(attack, rows)
    assert attack.picked(rows, report)
    size = float(report.abs()[0])
    assert 2 * size > attack.bound(rows) or not attack.picked(rows, 2 * report)
    torch.testing.assert_close(report, -size * rows.mean(dim=0).sign())
    chosen = KRUM(torch.cat([rows, report.expand(F, -1)])) / (HONEST + F)
    torch.testing.assert_close(chosen, report)


def test_where_krum_never_picks_fangs_report_it_is_next_to_nothing() -> None:
    rows = 100 + honest()
    report = said(FangKrum(datasets=(), copies=F), rows)
    assert 0 < float(report.abs().max()) < 1e-9
    assert bool((report < 0).all())


def test_fangs_bound() -> None:
    """By hand: three rows on a line, one attacker; each looks at n - k - 2 = 1 neighbour."""
    rows = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    assert FangKrum(datasets=(), copies=1).bound(rows) == pytest.approx(1.0 / 1 + 5.0)


@pytest.mark.parametrize("seed", range(3))
def test_min_sum_is_as_far_from_all_as_the_farthest_honest_report(seed: int) -> None:
    rows = honest(seed)
    report = said(MinSum(datasets=()), rows)
    sums = [float((rows - row).square().sum()) for row in rows]
    assert float((rows - report).square().sum()) == pytest.approx(max(sums), rel=1e-12)
    apart = report - rows.mean(dim=0)
    torch.testing.assert_close(apart / apart.norm(), -rows.std(dim=0) / rows.std(dim=0).norm())


@pytest.mark.parametrize("shift", [-9.0, 0.0, 9.0])
def test_fangs_numbers_are_beyond_the_honest_ones_on_the_other_side(shift: float) -> None:
    rows = honest() + shift
    report = said(FangTrimmedMean(datasets=(), seed=1, user=3), rows)
    low, high = rows.amin(dim=0), rows.amax(dim=0)
    for j in range(DIM):
        if rows[:, j].mean() > 0:
            first = low[j] / 2 if low[j] > 0 else 2 * low[j]
            assert first <= report[j] <= low[j]
        else:
            last = 2 * high[j] if high[j] > 0 else high[j] / 2
            assert high[j] <= report[j] <= last


def test_fangs_guess_is_three_to_four_deviations_away_on_the_other_side() -> None:
    rows = honest()
    report = said(ALL["fang-trimmed-mean, guessed"], rows)
    away = (report - rows.mean(dim=0)) / rows.std(dim=0)
    assert bool(((-away * rows.mean(dim=0).sign() >= 3) & (away.abs() <= 4)).all())


def test_fangs_numbers_are_drawn_for_each_user_and_round() -> None:
    rows, attack = honest(), FangTrimmedMean(datasets=(), seed=1, user=3)
    other = FangTrimmedMean(datasets=(), seed=1, user=4)
    assert torch.equal(said(attack, rows), said(attack, rows))
    assert not torch.equal(said(attack, rows), said(attack, rows, round=2))
    assert not torch.equal(said(attack, rows), said(other, rows))


def test_mimic_repeats_the_report_farthest_along_what_sets_users_apart() -> None:
    """Two users differ, along one axis: after some rounds one of them is always repeated."""
    attack = Mimic(datasets=(), seed=1)
    state = attack.init(torch.zeros(DIM).double())
    for round in range(1, 30):
        rows = 0.1 * honest(round) + 3.0
        rows[4, 2] += 5.0
        rows[7, 2] -= 4.0
        report, state = attack.update(state, seen(rows, round))
        assert any(torch.equal(report, row) for row in rows)
    assert abs(float(state.direction[2])) > 0.95
    expected = rows[4] if float(state.direction[2]) > 0 else rows[7]
    assert torch.equal(report, expected)
    assert float(state.rounds) == 29
    assert bool((state.mean - 3).abs().max() < 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("part", [-0.9, -0.5, 0.5, 0.85])
@pytest.mark.parametrize("name", ALL)
def test_reports_scale_as_what_they_are_made_of(name: str, part: float, dtype: torch.dtype) -> None:
    factor = 2.0 ** round(part * (127 if dtype == torch.float32 else 1023))
    rows = honest(dtype=dtype)
    expected = said(ALL[name], rows)
    got = said(ALL[name], rows * factor)
    torch.testing.assert_close(got / factor, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_reports_that_are_alike_or_nothing_leave_numbers(name: str) -> None:
    row = honest()[0]
    for rows in (row.expand(HONEST, -1), torch.zeros(HONEST, DIM).double()):
        assert bool(said(ALL[name], rows).isfinite().all())
    if "guessed" not in name:
        assert bool(said(ALL[name], honest()[:1]).isfinite().all())
        assert not bool(said(ALL[name], honest()[:0].new_zeros((1, DIM))).any())
