from __future__ import annotations

import gc
import weakref

import pytest

from pfl_flower.run import problem as problems
from pfl_flower.run.attack_plans import fabricate, plan
from pfl_flower.run.problem import Problem
from pfl_flower.run.strategic_user import other_data, other_population
from pfl_flower.support.memo import Memo, remembered
from tests.support.runs import configure


class Owner:
    def __init__(self) -> None:
        self.memo = Memo()
        self.calls: list[object] = []

    @remembered
    def doubled(self, number: int, *, plus: int = 0) -> list[int]:
        self.calls.append((number, plus))
        return [2 * number + plus]


@remembered
def failing(owner: Owner) -> None:
    owner.calls.append("failing")
    raise ValueError("no")


def test_once_for_each_owner_and_argument() -> None:
    first, second = Owner(), Owner()
    assert first.doubled(1) is first.doubled(1)
    assert first.doubled(1) is not second.doubled(1)
    assert [first.doubled(2), first.doubled(2, plus=1)] == [[4], [5]]
    assert first.calls == [(1, 0), (2, 0), (2, 1)]
    assert len(first.memo) == 3
    assert first.doubled.__doc__ == Owner.doubled.__doc__


def test_a_failure_is_not_remembered() -> None:
    owner = Owner()
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            failing(owner)
    assert owner.calls == ["failing", "failing"]
    assert not len(owner.memo)


def test_what_was_remembered_goes_with_its_owner() -> None:
    class Big:
        pass

    @remembered
    def big(owner: Owner) -> Big:
        return Big()

    owner = Owner()
    kept = weakref.ref(big(owner))
    assert kept() is big(owner)
    del owner
    gc.collect()
    assert kept() is None


CONFIG = configure(attack="data", strategic_users="3,4", target_shift="1", users=5)


def fresh() -> Problem:
    problems._build.cache_clear()
    return problems.build_problem(CONFIG)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_a_strategic_user_prepares_is_made_once(dtype: str) -> None:
    """A plan serves all users with its target, in whatever precision it is asked for."""
    problem = problems.build_problem(CONFIG.model_copy(update={"dtype": dtype}))
    assert plan(problem, 3) is plan(problem, 4) is plan(problem.in_double, 3)
    assert fabricate(problem, 3) is fabricate(problem, 3)
    assert fabricate(problem, 3) is not fabricate(problem, 4)
    assert other_data(problem, 3) is other_data(problem, 3)
    assert other_population(problem, (3, 4)) is other_population(problem, (3, 4))
    assert problem.population((0, 1)) is problem.population((0, 1))
    assert problem.population((0,)) is not problem.population((1,))


def test_two_problems_share_nothing() -> None:
    one, other = fresh(), fresh()
    assert one is not other
    assert plan(one, 3) is not plan(other, 3)
