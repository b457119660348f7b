"""Heterogeneity x lam x regulariser: what personalisation pays, and what one attacker takes.

Eleven users share the digits, by Dirichlet(alpha) or evenly; user 10 is honest, or attacks by CGA.
Measured are exact rests, so that neither steps nor rounds play a part: of all that a user can
choose lam is left. Accuracies are those of users 0 to 9 on test sets of their own.

Predicted from theory, before anything was measured:

* *Little lam*: ``theta_n -> argmin L_n``. Taking part pays nothing and costs nothing, attacked or
  not.
* *Much lam*: ``theta_n -> rho``, and rho becomes that of classical federated learning (the study
  ``classical``). CGA holds rho at its target where ``||sum_n g_n(target)|| <= lam``, and under a
  bounded R the left side is at most ``sum_n ||grad L_n(target)||``, whatever lam: so from some lam
  on one user owns every user's model *under every regulariser*. A ball protects only while lam is
  small beside the gradients of data.
* *Who differs more* gains more over rho, whose one model must serve all, and less over a model
  learned alone, as who holds few classes has an easy problem.
* *Who differs more* is easier to attack under a bounded R: honest reports cancel among themselves,
  and the attacker's does not.
* *The best lam* under attack is no larger than without: collaboration must be scaled down, as
  Allouah et al. 2024 (arXiv 2409.20329) find of an interpolation (study ``interpolation``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from experiments.heterogeneity.cells import EVEN, HONEST, Chain
from experiments.heterogeneity.presentation import draw
from experiments.studies.standing import FIGURE, Stated
from experiments.studies.study import Setting, Study
from experiments.studies.wording import Measured
from pfl_flower.run.checks import Check, Claim, Limits, Metrics, above, at_least, at_most, exactly

ALPHAS, QUICK_ALPHAS = ("0.05", "0.3", "1", EVEN), ("0.05", EVEN)
LAMS, QUICK_LAMS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4), (0.001, 1.0, 1e4)
"""From a tenth of nu, the least curvature that a user's loss is sure of, to beyond the gradients of
all data: a first look, from 0.1 on, showed that 0.1 is not little beside a nu of 0.01."""
OPEN, BOUNDED = "squared-l2", ("l2", "smooth-l2")
REGULARIZERS, QUICK_REGULARIZERS = (OPEN, *BOUNDED), (OPEN, "l2")
USUAL = 1.0
"""The lam of the presets, at which alphas are compared."""


def measure(setting: Setting) -> dict[str, Any]:
    """Return every cell's accuracies, and what the statements look at."""
    alphas: tuple[str, ...] = QUICK_ALPHAS if setting.quick else ALPHAS
    lams: tuple[float, ...] = QUICK_LAMS if setting.quick else LAMS
    regularizers: tuple[str, ...] = QUICK_REGULARIZERS if setting.quick else REGULARIZERS
    cells = {
        alpha: {name: Chain(setting, alpha, name, lams).cells() for name in regularizers}
        for alpha in alphas
    }
    return {"cells": cells, "metrics": metrics(cells)}


def metrics(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return for each alpha and regulariser what a lam is chosen by."""
    found: dict[str, float] = {}
    for alpha, by_name in cells.items():
        for name, chain in by_name.items():
            for key, value in _chosen(chain).items():
                found[f"alpha {alpha}, {name}: {key}"] = value
    return found


def _chosen(chain: Mapping[str, Any]) -> dict[str, float]:
    by_lam, alone = chain["by lam"], chain["alone"]
    calm = {float(lam): both["none"] for lam, both in by_lam.items()}
    hit = {float(lam): both["CGA"] for lam, both in by_lam.items()}
    best, safe = (best_lam({lam: c["theta"] for lam, c in side.items()}) for side in (calm, hit))
    least, most = min(calm), max(calm)
    reached = [lam for lam, cell in hit.items() if cell["reached"]]
    cells = [*calm.values(), *hit.values()]
    return {
        "alone": alone,
        "little lam, off alone": abs(calm[least]["theta"] - alone),
        "little lam, off peace": abs(calm[least]["theta"] - hit[least]["theta"]),
        "much lam, off rho": abs(calm[most]["theta"] - calm[most]["own rho"]),
        "much lam, damage to theta": calm[most]["theta"] - hit[most]["theta"],
        "gain over rho": calm[USUAL]["theta"] - calm[USUAL]["own rho"],
        "damage to rho": calm[USUAL]["rho"] - hit[USUAL]["rho"],
        "damage to theta": calm[USUAL]["theta"] - hit[USUAL]["theta"],
        "best lam": best,
        "best lam under CGA": safe,
        "best gain over alone": calm[best]["theta"] - alone,
        "best gain over alone under CGA": hit[safe]["theta"] - alone,
        "lost with the best lam of peace": hit[safe]["theta"] - hit[best]["theta"],
        **({"least lam at which CGA reaches its target": min(reached)} if reached else {}),
        "not converged": float(sum(not cell["converged"] for cell in cells)),
        "users tested": min(cell["tested"] for cell in cells),
    }


def best_lam(accuracies: Mapping[float, float]) -> float:
    """Return the lam of the highest accuracy, of several the least: it risks least.

    >>> best_lam({0.1: 0.8, 1.0: 0.9, 10.0: 0.9})
    1.0
    """
    return min(accuracies, key=lambda lam: (-accuracies[lam], lam))


def judge(finals: Sequence[Metrics]) -> list[Check]:
    """Return that the numbers can be relied on: rests were found, and users had test sets."""
    claims = [
        Claim("not converged", exactly(0), "rests that were not found"),
        Claim("users tested", at_least(len(HONEST)), "honest users with a test set of their own"),
    ]
    return [claim.check([_unlabelled(final, claim) for final in finals]) for claim in claims]


def _unlabelled(final: Metrics, claim: Claim) -> dict[str, float]:
    """Return the metric of all alphas and regularisers as cases of one."""
    name = str(claim.metric)
    return {f"{name}: {key}": value for key, value in final.items() if key.endswith(f": {name}")}


def words(m: Measured) -> str:
    """Return what lam does at its ends, and between them."""
    return (
        f"Without an attack the best lam gains {m.low('*: best gain over alone'):z.1%} to "
        f"{m.high('*: best gain over alone'):z.1%} of accuracy over models learned alone. Under "
        f"CGA the best lam leaves {m.low('*: best gain over alone under CGA'):z.1%} to "
        f"{m.high('*: best gain over alone under CGA'):z.1%}, and who keeps the lam that was best "
        f"in peace loses up to {m.high('*: lost with the best lam of peace'):z.1%}. At the largest "
        f"lam one user takes {m.low('*: much lam, damage to theta'):z.0%} to "
        f"{m.high('*: much lam, damage to theta'):z.0%} of everybody's accuracy, whatever the "
        f"regulariser; at lam = 1 {m.high('*squared-l2: damage to theta'):z.1%} at most under "
        f"squared l2, and {m.high('*, l2: damage to theta', '*smooth-l2: damage to theta'):z.1%} "
        f"under the bounded ones."
    )


def _between(final: Metrics, *, name: str, key: str, sign: float) -> float:
    """Return by how much a metric is larger where users differ most than where they do not."""
    most, none = (final[f"alpha {alpha}, {name}: {key}"] for alpha in (ALPHAS[0], EVEN))
    return sign * (most - none)


def _scaled_down(final: Metrics, *, alpha: str, name: str) -> float:
    """Return the best lam under attack over that without."""
    label = f"alpha {alpha}, {name}: best lam"
    return final[f"{label} under CGA"] / final[label]


HALF = 0.5
"""Half of all answers: more than that and a model is the attacker's."""


def _stated(
    what: str, name: str, claim: Claim, against: Limits, where: str = "predicted", why: str = ""
) -> Stated:
    figure = "what a figure tells from nothing; the opposite: no such difference, or the other way"
    return Stated(
        what=f"{what} ({name})", where=where, claim=claim, against=against, why=why or figure
    )


def _predictions() -> Iterator[Stated]:
    for alpha in ALPHAS:
        for name in REGULARIZERS:
            at, here = f"alpha {alpha}, {name}", f"alpha = {alpha}, {name}"
            for key, what in (
                ("little lam, off alone", "little lam: as if alone"),
                ("little lam, off peace", "little lam: not attacked"),
                ("much lam, off rho", "much lam: theta_n is rho"),
            ):
                claim = Claim(f"{at}: {key}", at_most(FIGURE))
                yield _stated(what, here, claim, at_least(5 * FIGURE))
            owned = Claim(f"{at}: much lam, damage to theta", at_least(HALF))
            yield _stated("much lam: one user owns every model", here, owned, at_most(FIGURE))
            scaled = Claim(partial(_scaled_down, alpha=alpha, name=name), at_most(1), f"{at}, lam")
            yield _stated(
                "the best lam is no larger under attack",
                here,
                scaled,
                above(1),
                where="Allouah et al. 2024, of an interpolation",
                why="the ratio of the best lams; the opposite: a larger one",
            )
    for name in REGULARIZERS:
        for key, sign, what in (
            ("gain over rho", 1.0, "who differs more gains more over rho"),
            ("best gain over alone", -1.0, "who differs more gains less over a model of its own"),
            ("damage to rho", 1.0, "where users differ more rho is easier to attack"),
        ):
            if key == "damage to rho" and name == OPEN:
                continue
            pair = partial(_between, name=name, key=key, sign=sign)
            yield _stated(what, name, Claim(pair, above(FIGURE), f"{name}, {key}"), at_most(0))


STUDY = Study(
    name="heterogeneity",
    claim=(
        "Ours, predicted from theory: lam trades what users gain from each other against what one "
        "of them can take, under every regulariser, and the more so the more they differ."
    ),
    words=words,
    measure=measure,
    judge=judge,
    draw=draw,
    seeds=(1, 2, 3),
    setting=(
        "The digits in 16 principal components, among eleven users, by Dirichlet(0.05), (0.3), (1) "
        "and evenly, a fifth of each user's points kept for its own test; linear softmax, nu = "
        "0.01, exact rests; user 10 honest, or by CGA."
    ),
    paper=tuple(_predictions()),
)
