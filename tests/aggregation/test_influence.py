"""Bounds on what k users do in a round: none that an attack breaks, and some that one reaches."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pfl_flower.aggregation.influence import one_round
from pfl_flower.aggregation.rounds import Nothing, Received
from pfl_flower.aggregation.rules import bind
from pfl_flower.aggregation.spectral import DivideAndConquer
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.aggregation.trust import trusted
from pfl_flower.support.seeding import generator

USERS, K, DIM, LAM = 11, 2, 4, 0.7
NOBODY: Any = None


def within(rows: Tensor, radius: float = LAM) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows * (radius / norms).clamp(max=1.0)


def left_out(rows: Tensor) -> Tensor:
    """DnC; of few coordinates it looks at all, and draws none."""
    rho = torch.zeros(DIM, dtype=torch.float64)
    seen = Received(round=1, users=torch.arange(len(rows)), rows=rows, rho=rho)
    return DivideAndConquer(NOBODY, tolerance=K).update(Nothing(), seen)[0]


OWN = within(torch.ones(DIM, dtype=torch.float64), 0.3)
RULES = {
    **{
        name: (bind(AGGREGATIONS.load(name), tolerance=K), None)
        for name in ("sum", "median", "geometric-median", "krum", "multi-krum", "mda")
    },
    "qrmed": (bind(AGGREGATIONS.load("qrmed"), tolerance=K, influence=0.2), 0.2),
    "static-clipping": (bind(AGGREGATIONS.load("static-clipping"), tolerance=K, radius=0.5), 0.5),
    "fltrust": (partial(trusted, own=OWN), 0.3),
    "dnc": (left_out, None),
}
REACHED = {"sum": 0.999, "static-clipping": 0.999, "qrmed": 0.5}
"""Share of the bound that the search must find, where the bound is sharp."""


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_no_choice_of_rows_breaks_a_bound(name: str, bounded: bool) -> None:
    apply, limit = RULES[name]
    radius = LAM if bounded else math.inf
    bound = one_round(name, users=USERS, strategic=K, radius=radius, limit=limit).most
    draw, found = generator(1, "influence", name), 0.0
    for _ in range(40):
        rows = within(torch.randn((USERS, DIM), generator=draw, dtype=torch.float64))
        way = within(100 * torch.randn(DIM, generator=draw, dtype=torch.float64))
        one, other = rows.clone(), rows.clone()
        size = 1.0 if bounded else 1e6
        one[:K], other[:K] = size * way, -size * way
        found = max(found, float(torch.linalg.vector_norm(apply(one) - apply(other))))
    assert found <= bound * (1 + 1e-9)
    # Rows far outside GRAD are what Krum and MDA leave out altogether.
    assert found > 0 or not bounded
    if name in REACHED and math.isfinite(bound):
        assert found >= REACHED[name] * bound


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_every_bound_that_is_claimed_is_tried(name: str) -> None:
    claimed = one_round(name, users=USERS, strategic=K, radius=LAM, limit=0.3).most
    assert math.isfinite(claimed) == (name in RULES)


def test_where_no_bound_is_known_it_is_infinite() -> None:
    for name in AGGREGATIONS:
        assert one_round(name, users=11, strategic=2, radius=math.inf).most == math.inf
    assert one_round("trimmed-mean", users=11, strategic=2, radius=1.0).most == math.inf
    assert one_round("krum", users=11, strategic=2, radius=1.0).most == 22.0
