"""The bound on where k users can make rho rest: nothing that they send breaks it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pfl_flower.aggregation.at_rest import Honest, at_rest, least_report
from pfl_flower.aggregation.rules import bind
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.objective.regularizers import L2, Regularizer, SmoothL2, SquaredL2
from pfl_flower.support.seeding import generator

K, M, DIM, CAP = 2, 9, 3, 0.4
CASES: dict[str, tuple[str, Regularizer, dict[str, float], float | None]] = {
    "sum, l2": ("sum", L2(lam=CAP), {}, None),
    "sum, smooth l2": ("sum", SmoothL2(lam=CAP), {}, None),
    "clipped, squared l2": ("static-clipping", SquaredL2(lam=1.0), {"radius": CAP}, CAP),
    "clipped, l2": ("static-clipping", L2(lam=2.0), {"radius": CAP}, CAP),
    "qrmed, squared l2": ("qrmed", SquaredL2(lam=1.0), {"influence": CAP}, CAP),
    "qrmed, l2": ("qrmed", L2(lam=1.0), {"influence": CAP}, CAP),
}


class Bowls:
    """Users with losses ``1/2 <theta - c, A (theta - c)>``, solved by fixed-point bisection."""

    def __init__(self, regularizer: Regularizer, seed: int) -> None:
        draw = generator(seed, "bowls")
        self.regularizer = regularizer
        self.centres = torch.randn((M, DIM), generator=draw, dtype=torch.float64)
        turn = torch.linalg.qr(torch.randn((M, DIM, DIM), generator=draw, dtype=torch.float64)).Q
        curved = 0.5 + 2 * torch.rand((M, DIM), generator=draw, dtype=torch.float64)
        self.curved = curved
        self.hessians = turn @ torch.diag_embed(curved) @ turn.transpose(1, 2)

    def reports(self, rho: Tensor) -> Tensor:
        """Return ``w (rho - theta_n)`` with ``w = phi'(r)/r``: w by bisection, theta by solving."""
        away = rho - self.centres
        slopes = torch.einsum("nij,nj->ni", self.hessians, away)
        eye = torch.eye(DIM, dtype=torch.float64)
        low, high = torch.full((M,), 1e-9).double(), torch.full((M,), 1e9).double()
        for _ in range(60):
            w = (low * high).sqrt()
            # A (theta - c) = w (rho - theta), so that z = (A + w)^-1 A (rho - c).
            z = torch.linalg.solve(self.hessians + w[:, None, None] * eye, slopes)
            r = torch.linalg.vector_norm(z, dim=1)
            weak = w < self.regularizer.weight(r)
            low, high = torch.where(weak, w, low), torch.where(weak, high, w)
        return w[:, None] * z

    def seen_from(self, point: Tensor) -> Honest:
        return Honest(
            away=torch.linalg.vector_norm(point - self.centres, dim=1),
            least=self.curved.min(dim=1).values,
            most=self.curved.max(dim=1).values,
        )


def rest(bowls: Bowls, name: str, options: dict[str, float], push: Tensor, k: int) -> Tensor:
    """Return where rho comes to with k users who report ``push``, by ever shorter steps."""
    rule = bind(AGGREGATIONS.load(name), tolerance=K, **options)
    rho = torch.zeros(DIM, dtype=torch.float64)
    for round in range(120):
        rows = torch.cat([bowls.reports(rho), push.expand(k, -1)])
        rho = rho - 0.5 / (1 + round / 10) * rule(rows)
    return rho


@pytest.mark.parametrize("case", CASES)
def test_no_push_makes_rho_rest_beyond_the_bound(case: str) -> None:
    seed = 1
    name, regularizer, options, limit = CASES[case]
    bowls = Bowls(regularizer, seed)
    quiet = rest(bowls, name, options, torch.zeros(DIM, dtype=torch.float64), 0)
    bound = at_rest(
        name,
        honest=bowls.seen_from(quiet),
        regularizer=regularizer,
        strategic=K,
        limit=limit,
    ).most
    found = []
    for number in range(2):
        draw = generator(seed, "push", number)
        way = torch.randn(DIM, generator=draw, dtype=torch.float64)
        push = regularizer.project(1e3 * way / torch.linalg.vector_norm(way))
        found.append(float(torch.linalg.vector_norm(rest(bowls, name, options, push, K) - quiet)))
    assert 0 < max(found) <= bound < math.inf
    # A bound of any length would hold: this one is of the size of what is found.
    assert max(found) > bound / 30


def test_a_least_report_is_no_longer_than_any() -> None:
    for regularizer in (SquaredL2(lam=0.3), L2(lam=0.7), SmoothL2(lam=0.7)):
        bowls = Bowls(regularizer, 3)
        for number in range(10):
            draw = generator(number, "rho")
            rho = 3 * torch.randn(DIM, generator=draw, dtype=torch.float64)
            sent = torch.linalg.vector_norm(bowls.reports(rho), dim=1)
            seen = bowls.seen_from(rho)
            assert bool((least_report(regularizer, seen.away, seen.least) <= sent + 1e-7).all())


def test_where_nothing_is_known_the_bound_is_infinite() -> None:
    honest = Bowls(L2(lam=1.0), 1).seen_from(torch.zeros(DIM, dtype=torch.float64))
    for name in AGGREGATIONS:
        bound = at_rest(name, honest=honest, regularizer=SquaredL2(lam=1.0), strategic=K)
        assert bound.most == math.inf
    too_many = at_rest("sum", honest=honest, regularizer=L2(lam=1.0), strategic=M)
    assert too_many.most == math.inf
