"""What a run keeps of its users one by one: the last that was measured of them."""

from __future__ import annotations

from collections.abc import Mapping

from pfl_flower.run.problem import Problem
from pfl_flower.run.served import Measure, Served, metrics, users_text
from pfl_flower.run.triggered import Triggered
from pfl_flower.run.triggered import metrics as triggered_metrics


class UserBook:
    """The users of a run, and what was last measured of each.

    Parameters
    ----------
    problem : Problem
        What is run.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._measure = Measure.of(problem.source.loss)
        self.text = ""

    def measured(
        self,
        served: Mapping[int, Served],
        triggered: Mapping[int, Triggered],
        strategic: frozenset[int],
    ) -> dict[str, float]:
        """Return the metrics of a round's users, nothing of a round that measured none of them."""
        if not served and not triggered:
            return {}
        self.text = users_text(
            served,
            self._measure,
            users=self._problem.config.users,
            strategic=strategic,
            sizes=self._sizes,
            names=self._problem.source.names,
            triggered=None if self._problem.backdoor is None else triggered,
        )
        return {**metrics(served, self._measure), **triggered_metrics(triggered)}

    def _sizes(self, user: int) -> tuple[int, int] | None:
        if not self._problem.source.at_hand:
            return None
        tests = self._problem.source.own_tests(user)
        return self._problem.size(user), 0 if tests is None else len(tests.labels)
