"""What is said of a rule: what it costs where nobody attacks, and the worst that was done to it.

An attacker who knows the rule may also do what one who does not would do, so a rule is judged by
the worst over *all* attacks. Beside that stands the worst over those whose attackers were told
neither the rule nor the honest reports: the difference is what a table of such attacks alone hides.

Accuracies of rho are on the common test set, those of theta_n on the users' own ones, of the ten
users who are honest in every run. Without an attack the other two are honest as well: part of what
an attack costs is that their data are missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from experiments.defences.cells import Cells, Row
from experiments.defences.plan import ATTACKS, NOBODY, REFERENCE, SCENES, Cell

Measured = Mapping[str, float | str]
"""What a cell came to: numbers, or ``error``, and ``unsound``."""
ByRule = Mapping[str, Measured]
ByAttack = Mapping[str, ByRule]
"""The cells of a scene."""
BROKE, UNSOUND = "runs that broke off", "runs that failed a check of their own"


def measured(cells: Cells) -> dict[str, dict[str, dict[str, Measured]]]:
    """Return the cells that were run, by scene, attack and rule."""
    found: dict[str, dict[str, dict[str, Measured]]] = {}
    for cell in cells.plan.cells:
        row, calm = cells.row(cell), cells.row(Cell(cell.scene, NOBODY, cell.rule))
        if row is not None:
            by_rule = found.setdefault(cell.scene, {}).setdefault(cell.attack, {})
            by_rule[cell.rule] = of_row(row, calm)
    return found


def of_row(row: Row, calm: Row | None) -> Measured:
    """Return what is kept of a run; ``calm`` is that of the same rule in which nobody attacks."""
    if row.get("error"):
        return {"error": str(row["error"])}
    users = row["users"]
    found: dict[str, float | str] = {
        "accuracy": row["accuracy"],
        "hacked": row["hacked"],
        "theta": sum(users) / len(users),
        "worst": min(users),
        "own rho": row["own_rho"],
        "share": math.nan,
        "left": math.nan,
    }
    if calm is not None and not calm.get("error"):
        rho, start, target = (vector(row["rho"]), vector(calm["rho"]), vector(row["target"]))
        found["share"], found["left"] = share(rho, start, target), left(rho, start, target)
    if unsound := [name for name in row["unsound"] if name != "finite"]:
        found["unsound"] = ", ".join(unsound)
    return found


def vector(numbers: Sequence[float]) -> Tensor:
    """Return numbers as a vector."""
    return torch.tensor(numbers, dtype=torch.float64)


def share(rho: Tensor, start: Tensor, target: Tensor) -> float:
    """Return how much of the way from ``start`` to the target rho was moved, along that way.

        <rho - start, target - start> / ||target - start||^2

    >>> share(vector([1.0, 5.0]), vector([0.0, 0.0]), vector([2.0, 0.0]))
    0.5
    """
    way, moved = target - start, rho - start
    return float(moved @ way / (way @ way))


def left(rho: Tensor, start: Tensor, target: Tensor) -> float:
    """Return rho's distance to the target, as a part of the way.

    >>> left(vector([2.0, 1.0]), vector([0.0, 0.0]), vector([2.0, 0.0]))
    0.5
    """
    return float(torch.linalg.vector_norm(rho - target) / torch.linalg.vector_norm(target - start))


@dataclass(frozen=True)
class Verdict:
    """What is said of one rule in one scene.

    Attributes
    ----------
    calm : float
        Accuracy of rho where nobody attacks.
    cost : float
        What that is less than under the sum.
    harm : float
        The most of rho's accuracy that an attack took, from ``calm``.
    share : float
        The largest share of the way to the target that an attack moved rho.
    untold_harm, untold_share, told_share : float
        The same over attackers who were told neither rule nor honest reports, or one of them.
    theta, theta_harm : float
        Mean accuracy of theta_n where nobody attacks, and the most of it that an attack took.
    worst_calm, worst : float
        Accuracy of the user who is served worst, without an attack and at the least under one.
    """

    calm: float
    cost: float
    harm: float
    share: float
    untold_harm: float
    untold_share: float
    told_share: float
    theta: float
    theta_harm: float
    worst_calm: float
    worst: float

    @property
    def lost(self) -> float:
        """What is lost in the worst case, by which rules are ranked: cost and harm."""
        return self.cost + self.harm


FIELDS = tuple(field.name for field in fields(Verdict))


def verdict(cells: ByAttack, rule: str) -> Verdict:
    """Return what is said of a rule; NaN where what it is judged by did not come to an end.

    >>> calm, hit = {"accuracy": 0.9, "theta": 0.8, "worst": 0.7, "share": 0.0}, {}
    >>> hit = {"accuracy": 0.5, "theta": 0.7, "worst": 0.6, "share": 0.3}
    >>> found = verdict({"none": {"sum": calm}, "rule-aware": {"sum": hit}}, "sum")
    >>> round(found.harm, 2), found.share, found.worst, found.untold_harm
    (0.4, 0.3, 0.6, 0.0)
    """
    calm = cells[NOBODY][rule]
    hits = {name: by_rule[rule] for name, by_rule in cells.items() if name != NOBODY}
    untold = [hit for name, hit in hits.items() if not ATTACKS[name].told]
    told = [hit for name, hit in hits.items() if ATTACKS[name].told]
    accuracy, theta = number(calm, "accuracy"), number(calm, "theta")
    reference = number(cells[NOBODY].get(REFERENCE, {}), "accuracy")
    return Verdict(
        calm=accuracy,
        cost=reference - accuracy,
        harm=accuracy - least(hits.values(), "accuracy", accuracy),
        share=-least(hits.values(), "share", 0.0, sign=-1.0),
        untold_harm=accuracy - least(untold, "accuracy", accuracy),
        untold_share=-least(untold, "share", 0.0, sign=-1.0),
        told_share=-least(told, "share", 0.0, sign=-1.0),
        theta=theta,
        theta_harm=theta - least(hits.values(), "theta", theta),
        worst_calm=number(calm, "worst"),
        worst=least(hits.values(), "worst", number(calm, "worst")),
    )


def worst_attack(cells: ByAttack, rule: str, measure: str) -> str:
    """Return the attack that did most to a rule by a measure, the first of several."""
    sign = -1.0 if measure == "share" else 1.0
    hits = {name: sign * number(by[rule], measure) for name, by in cells.items() if name != NOBODY}
    known = {name: value for name, value in hits.items() if not math.isnan(value)}
    return min(known, key=lambda name: known[name], default="")


def number(cell: Measured, measure: str) -> float:
    """Return a cell's number, NaN where it has none."""
    return float(cell.get(measure, math.nan))


def least(cells: Iterable[Measured], measure: str, start: float, sign: float = 1.0) -> float:
    """Return the least of a measure, times ``sign``, over cells that came to an end, and ``start``.

    A number that is none counts as the worst there is.
    """
    values = [start]
    for cell in cells:
        if "error" not in cell:
            value = sign * number(cell, measure)
            values.append(-math.inf if math.isnan(value) else value)
    return min(values)


def metrics(cells: Mapping[str, ByAttack]) -> dict[str, float]:
    """Return what checks and tables look at: for each scene and rule what is said of it."""
    found: dict[str, float] = {}
    for scene, by_attack in cells.items():
        for rule in by_attack[NOBODY]:
            if any(rule not in by_rule for by_rule in by_attack.values()):
                continue  # what one's own rule is compared with
            said = verdict(by_attack, rule)
            kept = SAID if SCENES[scene].crossed else SAID[:BRIEF]
            found |= {f"{scene}, {rule}: {words}": getattr(said, key) for key, words in kept}
        found |= _of_sum(f"{scene}, {REFERENCE}", by_attack)
    every = [
        one for by_attack in cells.values() for by in by_attack.values() for one in by.values()
    ]
    found[BROKE] = float(sum("error" in one for one in every))
    found[UNSOUND] = float(sum("unsound" in one for one in every))
    found["runs"] = float(len(every))
    return found


def _of_sum(where: str, by_attack: ByAttack) -> dict[str, float]:
    """Return what the paper's statements, and all comparisons, are about."""
    found = {"accuracy without attack": number(by_attack[NOBODY][REFERENCE], "accuracy")}
    if (hit := by_attack.get("CGA", {}).get(REFERENCE)) is not None:
        found |= {"CGA to target": number(hit, "left"), "CGA share": number(hit, "share")}
    return {f"{where}: {name}": value for name, value in found.items()}


SAID = (
    ("cost", "cost"),
    ("harm", "worst harm"),
    ("share", "largest share"),
    ("untold_harm", "harm by the untold"),
    ("untold_share", "share of the untold"),
    ("told_share", "share of the told"),
    ("theta_harm", "harm to theta"),
    ("worst", "worst user"),
)
"""What becomes a metric of a verdict, and what it is called there."""
BRIEF = 3
"""How many of them are kept of scenes at the sides."""
