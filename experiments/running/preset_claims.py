"""The presets, and what each claims to show."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pfl_flower.run.checks import Check

OPERATORS: Mapping[
    str, tuple[Callable[[float, float], bool], Callable[[Sequence[float]], float]]
] = {
    "<": (operator.lt, max),
    "<=": (operator.le, max),
    ">=": (operator.ge, min),
    "==": (operator.eq, max),
}
"""For each comparison, the test and the seed that is hardest to pass."""


@dataclass(frozen=True)
class Claim:
    """``metric comparison bound`` after the last round, for every seed."""

    metric: str
    comparison: str
    bound: float

    def check(self, finals: Sequence[Mapping[str, float]]) -> Check:
        """Return the check on the worst seed; a metric that is missing or not a number fails."""
        test, worst = OPERATORS[self.comparison]
        values = [final.get(self.metric, float("nan")) for final in finals]
        broken = [value for value in values if value != value]
        value = broken[0] if broken else worst(values)
        passed = not broken and all(test(value, self.bound) for value in values)
        return Check(self.metric, value, f"{self.comparison} {self.bound:g}", passed)


SOLVED = Claim("unconverged_total", "==", 0)
AT_REST = Claim("equilibrium_converged", "==", 1)
QUIET = Claim("rejections_total", "==", 0)

CLAIMS: Mapping[str, tuple[Claim, ...]] = {
    "digits-squared-l2": (
        Claim("distance_to_target", "<", 1e-6),
        Claim("accuracy_target", ">=", 0.95),
        Claim("accuracy_true", "<=", 0.02),
        SOLVED,
        QUIET,
    ),
    "digits-l2": (Claim("accuracy_true", ">=", 0.90), SOLVED, QUIET),
    "digits-smooth-l2": (Claim("accuracy_true", ">=", 0.90), SOLVED, QUIET),
    **{
        f"digits-squared-l2-{attack}": (
            Claim("accuracy_target", ">=", 0.95),
            Claim("accuracy_true", "<=", 0.02),
            Claim("equilibrium_distance_to_target", "<", 1e-6),
            Claim("equilibrium_accuracy_target", ">=", 0.95),
            AT_REST,
            SOLVED,
            QUIET,
        )
        for attack in ("model", "data")
    },
    **{
        f"digits-{regularizer}-{attack}": (
            Claim("accuracy_true", ">=", 0.90),
            Claim("equilibrium_accuracy_true", ">=", 0.90),
            AT_REST,
            SOLVED,
            QUIET,
        )
        for regularizer in ("l2", "smooth-l2")
        for attack in ("model", "data")
    },
    "digits-squared-l2-honest": (Claim("accuracy_true", ">=", 0.93), SOLVED, QUIET),
    "digits-l2-honest": (Claim("accuracy_true", ">=", 0.93), SOLVED, QUIET),
    "digits-smooth-l2-honest": (Claim("accuracy_true", ">=", 0.93), SOLVED, QUIET),
    "mnist-squared-l2": (
        Claim("target_gap", "<=", 0.005),
        Claim("distance_to_target", "<", 0.1),
        QUIET,
    ),
    "mnist-l2": (Claim("accuracy_true", ">=", 0.91), QUIET),
    "mnist-smooth-l2": (Claim("accuracy_true", ">=", 0.91), QUIET),
    "mnist-squared-l2-honest": (Claim("accuracy_true", ">=", 0.91), QUIET),
    "mnist-l2-honest": (Claim("accuracy_true", ">=", 0.91), QUIET),
    "mnist-smooth-l2-honest": (Claim("accuracy_true", ">=", 0.91), QUIET),
    "many-users": (Claim("distance_to_target", "<", 1e-4), SOLVED, QUIET),
}
