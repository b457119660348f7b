"""The attack that knows the rule: its laws under every rule, and what it carries through."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_flower.aggregation import rules
from pfl_flower.aggregation.combination import total
from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.rule_aware import RuleAware
from pfl_flower.attacks.rule_search import RuleSearch
from pfl_flower.objective.regularizers import L2, Regularizer, SmoothL2, SquaredL2
from pfl_flower.run.problem import build_problem
from pfl_flower.support.seeding import generator
from tests.support.runs import configure, play

F = 2
Rule = Callable[[Tensor], Tensor]
RULES: dict[str, Rule] = {
    "sum": total,
    "median": rules.median,
    "trimmed-mean": partial(rules.trimmed_mean, tolerance=F),
    "geometric-median": rules.geometric_median,
    "krum": partial(rules.krum, tolerance=F),
    "multi-krum": partial(rules.multi_krum, tolerance=F),
    "centred-clipping": rules.centred_clipping,
    "mixing": lambda rows: rules.median(rules.mixed(rows, tolerance=F)),
}
CLIFFS = ("krum", "multi-krum", "mixing")
"""Rules that leave out altogether what is too far out."""
HONEST, DIM = 8, 12


def honest(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = generator(seed, "honest reports")
    return (0.3 + torch.randn((HONEST, DIM), generator=draw, dtype=torch.float64)).to(dtype)


def wished(seed: int = 0) -> Tensor:
    draw = generator(seed, "wish")
    return 50 * torch.randn(DIM, generator=draw, dtype=torch.float64)


def attack(rule: Rule, regularizer: Regularizer | None = None, **more: Any) -> RuleAware:
    return RuleAware(
        target=torch.zeros(DIM, dtype=torch.float64),
        rule=rule,
        within=regularizer or SquaredL2(lam=1.0),
        datasets=(),
        copies=F,
        **more,
    )


def said(made: RuleAware, rows: Tensor, wish: Tensor) -> Tensor:
    """The report at ``eta = 1``, where the wish is rho - target."""
    seen = Observation(
        round=1, rho=wish, eta=1.0, eta_sum=0.0, accepted=torch.zeros_like(wish), honest=rows
    )
    return made.update(made.init(wish), seen)[0]


def along(rule: Rule, rows: Tensor, report: Tensor, wish: Tensor) -> float:
    """By how much the direction is nearer to the wish than 0 is: ``(W^2 - (W - D)^2)/(2 |W|)``."""
    direction = rule(torch.cat([rows, report.expand(F, -1)]))
    return float((wish.norm() ** 2 - (wish - direction).norm() ** 2) / (2 * wish.norm()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", RULES)
def test_it_carries_every_rule_towards_the_wish_and_farther_than_cga_does(
    name: str, seed: int
) -> None:
    rule, rows, wish = RULES[name], honest(seed), wished(seed)
    found = along(rule, rows, said(attack(rule), rows, wish), wish)
    alone = along(rule, rows, rows.mean(dim=0), wish)
    cga = along(rule, rows, (wish - rows.sum(dim=0)) / F, wish)
    assert found > alone + 1
    assert found > cga - 1e-6 * abs(cga)
    if name in CLIFFS:
        assert found > cga + 1
    # Were the sign wrong it would be carried the other way.
    other = along(rule, rows, said(attack(rule), rows, -wish), wish)
    assert other < alone - 1


@pytest.mark.parametrize("regularizer", [SquaredL2(lam=1.0), L2(lam=0.4)])
def test_the_sum_grants_the_wish_and_the_report_is_cgas(regularizer: Regularizer) -> None:
    rows, wish = regularizer.project(honest()), wished()
    report = said(attack(total, regularizer), rows, wish)
    expected = regularizer.project((wish - rows.sum(dim=0)) / F)
    torch.testing.assert_close(report, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_no_report_moves_rules_of_coordinates_farther(name: str) -> None:
    """Whatever is beyond all honest values of a coordinate is as good as infinity there."""
    rule, rows, wish = RULES[name], honest(), 1e4 * wished()
    best = along(rule, rows, 1e6 * wish.sign(), wish)
    found = along(rule, rows, said(attack(rule), rows, wish), wish)
    assert found == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("name", CLIFFS)
def test_it_stops_at_the_cliff(name: str) -> None:
    """A third farther out the rule drops the reports, and little of the way is left."""
    rule, rows, wish = RULES[name], honest(), wished()
    report = said(attack(rule), rows, wish)
    centre = rows.mean(dim=0)
    found = along(rule, rows, report, wish)
    assert along(rule, rows, centre + 4 / 3 * (report - centre), wish) < found
    assert along(rule, rows, centre + 0.5 * (report - centre), wish) < found


@pytest.mark.parametrize("lam", [0.2, 3.0])
@pytest.mark.parametrize("kind", [L2, SmoothL2])
@pytest.mark.parametrize("name", RULES)
def test_it_searches_within_what_is_plausible(name: str, kind: type[L2], lam: float) -> None:
    regularizer = kind(lam=lam)
    rows, wish = regularizer.project(honest()), wished()
    report = said(attack(RULES[name], regularizer), rows, wish)
    assert bool(regularizer.contains(report))
    assert along(RULES[name], rows, report, wish) > along(RULES[name], rows, rows.mean(dim=0), wish)


def test_it_stays_within_the_norm_limit() -> None:
    report = said(attack(total, limit=0.5), honest(), wished())
    assert 0.5 * (1 - 1e-6) < float(report.norm()) <= 0.5


@pytest.mark.parametrize("part", [-0.96, -0.5, 0.5, 0.9])
@pytest.mark.parametrize("name", RULES)
def test_reports_scale_as_what_they_are_made_of(name: str, part: float) -> None:
    factor = 2.0 ** round(part * 1023)
    rows, wish = honest(), wished()
    expected = said(attack(RULES[name]), rows, wish)
    got = said(attack(RULES[name]), rows * factor, wish * factor)
    torch.testing.assert_close(got / factor, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_reports_that_are_alike_or_nothing_and_no_wish_leave_numbers(name: str) -> None:
    row = honest()[0]
    for rows in (row.expand(HONEST, -1), torch.zeros(HONEST, DIM).double(), honest()[:1]):
        for wish in (wished(), torch.zeros(DIM).double(), 1e300 * wished(), 5e-324 * wished()):
            assert bool(said(attack(RULES[name]), rows, wish).isfinite().all())
    nobody = said(attack(RULES[name]), honest()[:0], wished())
    torch.testing.assert_close(nobody, wished() / F)


@pytest.mark.parametrize("name", sorted(set(RULES) - {"mixing"}))
def test_the_slope_is_the_gains(name: str) -> None:
    """Against a central difference along it, where the best report so far is the honest mean."""
    search = RuleSearch(
        rule=RULES[name],
        others=honest()[None],
        copies=F,
        wish=wished(),
        plausible=lambda x: x,
        trials=1,
    )
    slope = search.slope()
    assert slope is not None
    ahead, behind = (float(search.gain(search.best + h * slope)) for h in (1e-6, -1e-6))
    report = search.best.clone().requires_grad_()
    (whole,) = torch.autograd.grad(search.gain(report), report)
    assert (ahead - behind) / 2e-6 == pytest.approx(float(whole.norm()), rel=1e-4)
    assert float(whole.norm()) > 0


def test_a_rule_without_a_gradient_is_searched_all_the_same() -> None:
    def opaque(rows: Tensor) -> Tensor:
        return torch.from_numpy(rows.detach().numpy().sum(axis=0))

    search = RuleSearch(
        rule=opaque,
        others=honest()[None],
        copies=1,
        wish=wished(),
        plausible=lambda x: x,
        trials=99,
    )
    assert search.slope() is None
    assert float(opaque(search.run()[None]) @ wished()) > 0
    assert search.trials == 0


def test_the_rule_is_worked_out_as_often_as_is_allowed() -> None:
    counted = []

    def rule(rows: Tensor) -> Tensor:
        counted.append(len(rows))
        return rules.median(rows)

    search = RuleSearch(
        rule=rule,
        others=torch.stack([honest(seed) for seed in range(3)]),
        copies=2,
        wish=wished(),
        plausible=lambda x: x,
        trials=7,
    )
    search.slope = lambda: None  # type: ignore[method-assign]
    search.run()
    assert counted == [HONEST + 2] * (3 * 7)


def test_lines_lead_towards_the_wish_and_begin_where_they_say() -> None:
    """What the sum would take, each coordinate its own way, and out of the farthest row."""
    rows, wish = honest(), wished()
    search = RuleSearch(
        rule=total, others=rows[None], copies=F, wish=wish, plausible=lambda x: x, trials=99
    )
    (whole, signs, out), centre = list(search.lines()), rows.mean(dim=0)
    torch.testing.assert_close(torch.stack([whole[0], signs[0]]), centre.expand(2, -1))
    cga = (wish - rows.sum(dim=0)) / F
    torch.testing.assert_close(whole[1], (cga - centre) / (cga - centre).norm())
    torch.testing.assert_close(signs[1], wish.sign() / DIM**0.5)
    farthest = max(range(HONEST), key=lambda i: float(rows[i] @ wish))
    assert torch.equal(out[0], rows[farthest])
    torch.testing.assert_close(out[1], wish / wish.norm())


def test_a_guess_is_judged_by_the_worst() -> None:
    search = RuleSearch(
        rule=lambda rows: rows[0],
        others=torch.stack([honest(), -honest()]),
        copies=1,
        wish=wished(),
        plausible=lambda x: x,
        trials=1,
    )
    gains = [search.gain_with(rows, wished()) for rows in (honest(), -honest())]
    assert float(search.gain(wished())) == float(min(gains)) < float(max(gains))


@pytest.mark.parametrize("knowledge", ["rule", "omniscient"])
@pytest.mark.parametrize("aggregation", ["median", "multi-krum"])
def test_a_run_ends_nearer_to_the_target_than_under_cga(aggregation: str, knowledge: str) -> None:
    """Thirty rounds of seven users: what Multi-Krum takes from CGA it leaves to this attacker."""
    base: dict[str, Any] = {
        "users": 9,
        "strategic_users": "7,8",
        "points_per_user": "40",
        "aggregation": aggregation,
        "rounds": 15,
    }
    target = build_problem(configure(**base)).target
    ended = {
        name: float((play(configure(**base, **keys), nodes=2)[-1].rho - target).norm())
        for name, keys in {
            "none": {},
            "cga": {},
            "aware": {"attack": "rule-aware", "attack_knowledge": knowledge},
        }.items()
        if name != "none"
    }
    assert ended["aware"] < ended["cga"] + (0.02 if aggregation == "median" else -0.1)
