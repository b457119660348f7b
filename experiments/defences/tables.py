"""The tables of ``defences``: verdicts on rules, and what cannot be relied on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from experiments.defences.coverage import having
from experiments.defences.judgement import (
    FIELDS,
    ByAttack,
    Measured,
    Verdict,
    number,
    verdict,
    worst_attack,
)
from experiments.defences.plan import NOBODY
from experiments.studies.study import Result

DIVERGED = 10.0
"""Times the way to the target, beyond which rho counts as diverged."""


def shown(value: float, digits: int = 2) -> str:
    """Return a number, no -0, and a word where rho is past all bounds or nothing was measured.

    >>> shown(0.956), shown(-0.004), shown(-12345.0), shown(float("nan"))
    ('0.96', '0.00', 'div.', '-')
    """
    if math.isnan(value):
        return "-"
    if abs(value) > DIVERGED:
        return "div."
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def means(results: Sequence[Result], scene: str) -> dict[str, dict[str, Measured]]:
    """Return a scene's cells, their numbers as means over the seeds; what broke off in one broke.

    A number that is none in a seed is none.
    """
    of_it = having(results, scene)
    first: ByAttack = of_it[0]["cells"][scene]
    found: dict[str, dict[str, Measured]] = {}
    for attack, by_rule in first.items():
        for rule in by_rule:
            ones: list[Measured] = [one["cells"][scene][attack][rule] for one in of_it]
            found.setdefault(attack, {})[rule] = _mean(ones)
    return found


def _mean(cells: Sequence[Measured]) -> Measured:
    for cell in cells:
        if "error" in cell:
            return cell
    numbers = {name for name, value in cells[0].items() if not isinstance(value, str)}
    words = {k: v for cell in cells for k, v in cell.items() if isinstance(v, str)}
    return {**{name: fmean(number(cell, name) for cell in cells) for name in numbers}, **words}


def verdicts(results: Sequence[Result], scene: str) -> dict[str, list[Verdict]]:
    """Return by rule what is said of it in each seed."""
    found: dict[str, list[Verdict]] = {}
    for result in having(results, scene):
        by_attack: ByAttack = result["cells"][scene]
        for rule in by_attack[NOBODY]:
            if all(rule in by_rule for by_rule in by_attack.values()):
                found.setdefault(rule, []).append(verdict(by_attack, rule))
    return found


def averaged(ones: Sequence[Verdict]) -> Verdict:
    """Return the mean over seeds of each number of a verdict."""
    return Verdict(**{name: fmean(getattr(one, name) for one in ones) for name in FIELDS})


HEAD = (
    "rule",
    "rho, no attack",
    "cost",
    "worst harm",
    "by",
    "share of the way",
    "by",
    "of the untold",
    "theta_n, no attack",
    "worst harm to it",
    "worst user, no attack",
    "under attack",
)


def row(rule: str, said: Verdict, by: tuple[str, str] = ("", "")) -> tuple[str, ...]:
    """Return a rule's row under ``HEAD``, ``by`` being the attacks of worst harm and share."""
    return (
        rule,
        shown(said.calm),
        shown(said.cost, 3),
        shown(said.harm, 3),
        by[0],
        shown(said.share),
        by[1],
        shown(said.untold_share),
        shown(said.theta),
        shown(said.theta_harm),
        shown(said.worst_calm),
        shown(said.worst),
    )


def ranked(results: Sequence[Result], scene: str) -> list[tuple[str, ...]]:
    """Return the rows of a scene's verdicts, the least lost in the worst case first."""
    cells, found = means(results, scene), verdicts(results, scene)
    said = {rule: averaged(ones) for rule, ones in found.items()}
    order = sorted(said, key=lambda rule: said[rule].lost)
    return [
        row(
            rule,
            said[rule],
            (worst_attack(cells, rule, "accuracy"), worst_attack(cells, rule, "share")),
        )
        for rule in order
    ]


def broken(results: Sequence[Result]) -> list[str]:
    """Return a line for each run that broke off or failed a check of its own."""
    found = []
    for result in results:
        for scene, by_attack in result["cells"].items():
            for attack, by_rule in by_attack.items():
                for rule, cell in by_rule.items():
                    said = cell.get("error") or cell.get("unsound")
                    if said:
                        seed = result.get("asked", {}).get("seed", "?")
                        what = "broke off" if "error" in cell else "failed"
                        found.append(f"{scene}, {attack}, {rule}, seed {seed}: {what}: {said}")
    return found
