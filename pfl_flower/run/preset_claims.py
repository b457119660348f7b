"""What each preset claims to show, and whether a configuration is a preset as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from pfl_flower.run.attendance import Attendance
from pfl_flower.run.checks import (
    Check,
    Claim,
    at_least,
    at_most,
    below,
    exactly,
    sanity_checks,
)
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.keys import Scalar
from pfl_flower.run.metrics import NODES_WORD
from pfl_flower.run.places import ELSEWHERE
from pfl_flower.run.presets import preset, preset_names
from pfl_flower.run.rounds import Numbers

NO_CLAIM = "no claim for these settings"
FREE = ELSEWHERE | {"seed"}
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
    """Return what is claimed of a configuration: what its preset does, nothing of any other.

    At a site nothing is claimed of what nodes say of themselves.
    """
    name = preset_of(config)
    claims = () if name is None else CLAIMS[name]
    return tuple(claim for claim in claims if not (config.site and claim.metric in NODES_WORD))


def claimed(config: RunConfig) -> str:
    """Return whose claims are judged, in a few words."""
    return f"those of the preset {preset_of(config)}" if claims_of(config) else NO_CLAIM


def all_checks(
    config: RunConfig, rows: Numbers, metrics: Mapping[str, float], attendance: Attendance
) -> list[Check]:
    """Return what must hold of any run, and what else is claimed of a preset as it stands."""
    checks = [*sanity_checks(config, rows), *attendance.checks(config)]
    known = {check.name for check in checks}
    claims = [claim for claim in claims_of(config) if claim.title not in known]
    return checks + [claim.check([metrics]) for claim in claims]


SOLVED = Claim("unconverged_total", exactly(0))
AT_REST = Claim("equilibrium_converged", exactly(1))
QUIET = Claim("rejections_total", exactly(0))
SERVED = Claim("own_gain_over_rho", at_least(0))
"""What personalisation is for: on their own test sets users are, on average, no worse off with
theta_n, which is fitted to such points, than with rho."""

# Where the limits come from: none is drawn around what was measured.
NEAR = 1e-6
"""Of the digits' 27 from the start to the target. Theorem 4's recursion allows the largest root of
``x^2 = eta L (x + 1)``, 0.722 at ``eta L = 10/33``, and ``27 * 0.722^60 = 9e-8``."""
NIL = 0.02
"""Accuracy that no figure tells from nil, a fiftieth of its axis; guessing has 0.1."""
MOVED = 0.95
"""Accuracy on the attacker's labels: the target's own on the 360 test digits, 0.969, less two
standard errors, ``sqrt(0.969 * 0.031 / 360) = 0.009``."""
HONEST, HELD = 0.93, 0.90
"""Accuracy on the 360 test digits without an attack, and of one that was in vain: that of a linear
softmax classifier, 0.96, less three standard errors, and less as many again."""
LINEAR = 0.91
"""Accuracy on MNIST's 10,000 test digits, attacked in vain or not at all: that of a linear softmax
classifier, 0.92, less three standard errors of 0.003."""
GUESSED = 0.1
"""Accuracy of an answer drawn among ten digits: rho has not learned what the attacker wants."""
APART = 0.005
"""By how much two models that answer alike may differ there: two standard errors."""
SHORT, FEW_ROUNDS = 0.1, 1e-4
"""Of a way of 39.6, in single precision and by single local steps that are 0.005 long in each
coordinate; and of a way of about 1, in 15 rounds: what is left shows in no figure."""

CLAIMS: Mapping[str, tuple[Claim, ...]] = {
    "digits": (),
    "digits-squared-l2": (
        Claim("distance_to_target", below(NEAR)),
        Claim("accuracy_target", at_least(MOVED)),
        Claim("accuracy_true", at_most(NIL)),
        SOLVED,
        QUIET,
    ),
    "digits-l2": (Claim("accuracy_true", at_least(HELD)), SOLVED, QUIET),
    "digits-smooth-l2": (Claim("accuracy_true", at_least(HELD)), SOLVED, QUIET),
    **{
        f"digits-squared-l2-{attack}": (
            Claim("accuracy_target", at_least(MOVED)),
            Claim("accuracy_true", at_most(NIL)),
            Claim("equilibrium_distance_to_target", below(NEAR)),
            Claim("equilibrium_accuracy_target", at_least(MOVED)),
            AT_REST,
            SOLVED,
            QUIET,
        )
        for attack in ("model", "data")
    },
    **{
        f"digits-{regularizer}-{attack}": (
            Claim("accuracy_true", at_least(HELD)),
            Claim("equilibrium_accuracy_true", at_least(HELD)),
            AT_REST,
            SOLVED,
            QUIET,
        )
        for regularizer in ("l2", "smooth-l2")
        for attack in ("model", "data")
    },
    "digits-squared-l2-honest": (Claim("accuracy_true", at_least(HONEST)), SOLVED, QUIET),
    "digits-l2-honest": (Claim("accuracy_true", at_least(HONEST)), SOLVED, QUIET),
    "digits-smooth-l2-honest": (Claim("accuracy_true", at_least(HONEST)), SOLVED, QUIET),
    "mnist-squared-l2": (
        Claim("target_gap", at_most(APART)),
        Claim("distance_to_target", below(SHORT)),
        QUIET,
    ),
    "mnist-l2": (Claim("accuracy_true", at_least(LINEAR)), QUIET),
    "mnist-smooth-l2": (Claim("accuracy_true", at_least(LINEAR)), QUIET),
    "mnist-squared-l2-honest": (Claim("accuracy_true", at_least(LINEAR)), QUIET),
    "mnist-l2-honest": (Claim("accuracy_true", at_least(LINEAR)), QUIET),
    "mnist-smooth-l2-honest": (Claim("accuracy_true", at_least(LINEAR)), QUIET),
    "mnist-cnn-l2": (
        # Of users who differ, and yet no less than a linear model has of users who do not.
        Claim("accuracy_true", at_least(LINEAR)),
        Claim("accuracy_target", at_most(GUESSED)),
        SERVED,
        QUIET,
    ),
    "mnist-cnn-l2-honest": (Claim("accuracy_true", at_least(LINEAR)), SERVED, QUIET),
    "many-users": (Claim("distance_to_target", below(FEW_ROUNDS)), SOLVED, QUIET),
}
