from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_flower.aggregation.combination import combine, total
from pfl_flower.aggregation.reports import Reason, Report, ReportError, RowCheck, check_form
from pfl_flower.aggregation.rows import Rows
from pfl_flower.objective.regularizers import L2, SmoothL2, SquaredL2

FORM = {"round": 3, "users": (0, 2), "dim": 4, "dtype": torch.float64}


def report(**changes: object) -> Report:
    values: dict[str, object] = {
        "round": 3,
        "users": (0, 2),
        "gradients": torch.zeros(2, 4, dtype=torch.float64),
    }
    return Report(**{**values, **changes})  # type: ignore[arg-type]


def test_a_report_of_the_right_form_passes() -> None:
    check_form(report(), **FORM)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"round": 2}, Reason.WRONG_ROUND),
        ({"users": (0, 1)}, Reason.WRONG_USERS),
        ({"users": (2, 0)}, Reason.WRONG_USERS),
        ({"users": (0,)}, Reason.WRONG_USERS),
        ({"gradients": torch.zeros(2, 4)}, Reason.WRONG_DTYPE),
        ({"gradients": torch.zeros(2, 4, dtype=torch.complex128)}, Reason.WRONG_DTYPE),
        ({"gradients": torch.zeros(2, 5, dtype=torch.float64)}, Reason.WRONG_SHAPE),
        ({"gradients": torch.zeros(4, dtype=torch.float64)}, Reason.WRONG_SHAPE),
        ({"gradients": torch.zeros(1, dtype=torch.float64)}, Reason.WRONG_SHAPE),
        ({"gradients": torch.zeros(3, 4, dtype=torch.float64)}, Reason.WRONG_ROWS),
    ],
)
def test_faults_of_form_have_their_reason(changes: dict[str, object], reason: Reason) -> None:
    with pytest.raises(ReportError) as caught:
        check_form(report(**changes), **FORM)  # type: ignore[arg-type]
    assert caught.value.reason is reason


ROWS = [
    ([3.0, 0.0], L2(lam=1.0), Reason.OUTSIDE_GRAD),
    ([3.0, 0.0], SmoothL2(lam=1.0), Reason.OUTSIDE_GRAD),
    ([3.0, 0.0], SquaredL2(lam=1.0), None),
    ([1.0 + 5e-7, 0.0], L2(lam=1.0), None),
    ([1.0 + 5e-6, 0.0], L2(lam=1.0), Reason.OUTSIDE_GRAD),
    ([math.nan, 0.0], SquaredL2(lam=1.0), Reason.NOT_FINITE),
    ([math.inf, 0.0], L2(lam=1.0), Reason.NOT_FINITE),
    ([5e-324, 0.0], L2(lam=1.0), None),
]


@pytest.mark.parametrize(("row", "regularizer", "reason"), ROWS)
def test_rows_are_judged_one_by_one(row: list[float], regularizer, reason) -> None:  # type: ignore[no-untyped-def]
    good = torch.tensor([0.5, 0.5], dtype=torch.float64)
    gradients = torch.stack([good, torch.tensor(row, dtype=torch.float64)])
    rows, rejections = RowCheck(plausible=regularizer).split(Rows(torch.tensor([4, 9]), gradients))
    assert torch.equal(rows[4], good)
    assert [fault.reason for fault in rejections] == ([] if reason is None else [reason])
    assert [fault.user for fault in rejections] == ([] if reason is None else [9])
    if reason is None:
        assert torch.linalg.vector_norm(rows[9]) <= regularizer.radius * (1 + 1e-15)


def test_an_optional_limit_on_the_norm() -> None:
    check = RowCheck(plausible=SquaredL2(lam=1.0), max_norm=2.0)
    _, rejections = check.split(Rows(torch.tensor([0, 1]), torch.tensor([[1.9, 0.0], [2.1, 0.0]])))
    assert [(fault.user, fault.reason) for fault in rejections] == [(1, Reason.NORM_LIMIT)]


def test_rows_are_summed_in_the_order_of_the_users() -> None:
    values = torch.tensor([[1e16], [1.0], [-1e16]], dtype=torch.float64)
    shuffled = Rows(torch.tensor([2, 0, 1]), values[[2, 0, 1]])
    direction, kept, _ = combine(shuffled, torch.zeros(1, dtype=torch.float64), 0.1)
    assert list(kept) == [0, 1, 2]
    assert torch.equal(direction, total(values))


def test_a_row_that_would_make_rho_infinite_is_refused_alone() -> None:
    rho = torch.zeros(1, dtype=torch.float64)
    huge = torch.tensor([1.5e308], dtype=torch.float64)
    rows = Rows.of({0: torch.ones(1, dtype=torch.float64), 1: huge, 2: huge})
    direction, kept, rejections = combine(rows, rho, 1.0)
    assert sorted(kept) == [0, 1]
    assert [(fault.user, fault.reason) for fault in rejections] == [(2, Reason.OVERFLOW)]
    assert torch.isfinite(direction).all()


def test_without_rows_rho_stays() -> None:
    direction, kept, _ = combine(Rows.none(), torch.ones(3), 0.1)
    assert not kept
    assert torch.equal(direction, torch.zeros(3))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_k_users_move_rho_by_at_most_eta_k_lam(data: st.DataObject) -> None:
    lam = data.draw(st.floats(0.01, 100.0))
    regularizer = data.draw(st.sampled_from([L2(lam=lam), SmoothL2(lam=lam)]))
    number = st.floats(allow_nan=True, allow_infinity=True, width=64)
    rows = data.draw(st.lists(st.lists(number, min_size=3, max_size=3), min_size=1, max_size=4))
    honest = Rows.of({9: torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64) * lam})
    theirs = Rows(torch.arange(len(rows)), torch.tensor(rows, dtype=torch.float64))
    rho, eta = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), 0.5
    accepted, _ = RowCheck(plausible=regularizer).split(theirs)
    with_them = combine(Rows.merge([honest, accepted]), rho, eta)[0]
    without = combine(honest, rho, eta)[0]
    moved = torch.linalg.vector_norm(eta * (with_them - without))
    assert moved <= eta * len(rows) * lam * (1 + 1e-12)
