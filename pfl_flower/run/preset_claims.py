"""What each preset claims to show, and whether a configuration is a preset as it stands."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from pfl_flower.run.checks import Check, sanity_checks
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.keys import Scalar
from pfl_flower.run.presets import preset, preset_names
from pfl_flower.run.rounds import Numbers

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


NO_CLAIM = "no claim for these settings"
FREE = frozenset(
    {
        "name",
        "output-dir",
        "seed",
        "device",
        "save-trajectory",
        "checkpoint-every",
        "resume",
        "state-dir",
        "data-dir",
        "chunk-users",
        "evaluate-every",
        "min-nodes",
        "node-timeout",
        "reply-timeout",
    }
)
"""Keys whose values leave a preset what it is: where, on what and with which draws it is run."""


def preset_of(config: RunConfig) -> str | None:
    """Return the preset that a configuration is, None if it was changed or is another's.

    >>> preset_of(parse_config({"seed": 7, "name": "mine"})), preset_of(parse_config({"lam": 2.0}))
    ('digits-squared-l2', None)
    """
    return _as_they_stand().get(_fixed(config))


@cache
def _as_they_stand() -> Mapping[frozenset[tuple[str, Scalar]], str]:
    return {_fixed(parse_config(preset(name))): name for name in preset_names()}


def _fixed(config: RunConfig) -> frozenset[tuple[str, Scalar]]:
    return frozenset((key, value) for key, value in config.flat().items() if key not in FREE)


def claims_of(config: RunConfig) -> tuple[Claim, ...]:
    """Return what is claimed of a configuration: what its preset does, nothing of any other."""
    name = preset_of(config)
    return () if name is None else CLAIMS[name]


def claimed(config: RunConfig) -> str:
    """Return whose claims are judged, in a few words."""
    name = preset_of(config)
    return NO_CLAIM if name is None else f"those of the preset {name}"


def all_checks(config: RunConfig, rows: Numbers, metrics: Mapping[str, float]) -> list[Check]:
    """Return what must hold of any run, and what else is claimed of a preset as it stands."""
    checks = sanity_checks(config, rows)
    known = {check.name for check in checks}
    claims = [claim for claim in claims_of(config) if claim.metric not in known]
    return checks + [claim.check([metrics]) for claim in claims]


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
