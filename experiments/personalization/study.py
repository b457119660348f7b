"""Ways to personalise under the same attacks: who is hurt, rho or the users.

Ours. Twelve users of digits by Dirichlet(0.3), two of them strategic, and the plain sum. Ways: the
paper's joint minimisation under squared l2 and l2, ditto (theta_n is tied to a rho that is learned
without it), classical (theta_n is rho), local (nobody shares). Measured is accuracy on honest
users' own test sets, of rho and theta_n, and the share of triggered points that are led.

Predicted from what each way is: under classical theta_n is rho, so that who takes rho takes
everybody; under local nobody's report moves anybody; under ditto rho is lost as it is under
classical, for the same reports decide it, and users keep more of what their own points say; joint
under l2 a report is at most lam, and users lose next to nothing.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from experiments.personalization.drawing import draw
from experiments.running.preset_runs import final_metrics
from experiments.studies.standing import Stated
from experiments.studies.study import Setting, Study
from experiments.studies.variants import Keys, run_variant
from experiments.studies.wording import Measured
from pfl_flower.run.checks import Claim, Metrics, at_least, at_most, exactly
from pfl_flower.run.config import RunConfig

BASE: Keys = {
    "dataset": "digits",
    "users": 12,
    "partition": "dirichlet",
    "partition-alpha": 0.3,
    "nu": 0.01,
    "local-solver": "adam",
    "local-lr": 0.05,
}
HONEST = 10
STRATEGIC: Keys = {"strategic-users": "10,11"}
ROUNDS, QUICK_ROUNDS = 60, 30
WAYS: Mapping[str, Keys] = {
    "joint, squared-l2": {},
    "joint, l2": {"regularizer": "l2"},
    "ditto": {"personalization": "ditto"},
    "classical": {"personalization": "classical"},
    "local": {"personalization": "local"},
}
NOBODY = "nobody"
OMNISCIENT: Keys = {"attack-knowledge": "omniscient"}
ATTACKS: Mapping[str, Keys] = {
    NOBODY: {},
    "cga": {},
    "inner-product": OMNISCIENT,
    "label-flip": {},
    "sign-flip": OMNISCIENT,
    "little-is-enough": OMNISCIENT,
    "backdoor": {},
    "model-replacement": {},
}
"""Those of the literature as their papers have them: they see the honest reports of the round."""
KEPT = {
    "own_rho_mean": "rho",
    "own_theta_mean": "theta",
    "own_theta_worst": "the user worst off",
    "triggered_rho": "led, rho",
    "triggered_theta_mean": "led, theta",
}


def measure(setting: Setting) -> dict[str, Any]:
    """Return accuracies on users' own test sets by way and attack, and what users lose."""
    rounds = QUICK_ROUNDS if setting.quick else ROUNDS
    metrics: dict[str, float] = {}
    for way, keys in WAYS.items():
        common: Keys = {**BASE, **keys, "rounds": rounds, "evaluate-every": rounds}
        for attack, more in ATTACKS.items():
            attacked: Keys = {**common, **STRATEGIC, "attack": attack, **more}
            calm: Keys = {**common, "strategic-users": "none"}
            nobody = setting.control or attack == NOBODY
            # In the control all attacks are one run, which is kept.
            label = f"{NOBODY if nobody else attack}, {way}"
            config = run_variant(setting, label, calm if nobody else attacked)
            ended = final_metrics(config)
            if nobody:
                # Those who attack elsewhere are left out here, too.
                ended = honest_elsewhere(config)
            metrics |= {
                f"{attack}, {way}: {name}": ended[key] for key, name in KEPT.items() if key in ended
            }
    return {"metrics": metrics | dict(_losses(metrics))}


def honest_elsewhere(config: RunConfig) -> dict[str, float]:
    """Return what a run without attackers ended with for the users who never attack."""
    with (config.folder() / "users.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["user"]) < HONEST]
    rho, theta = ([float(row[column]) for row in rows] for column in ("rho", "theta"))
    return {
        "own_rho_mean": statistics.fmean(rho),
        "own_theta_mean": statistics.fmean(theta),
        "own_theta_worst": min(theta),
    }


def _losses(metrics: Metrics) -> Iterator[tuple[str, float]]:
    """Yield by how much rho's and theta's accuracy is below that where nobody attacks."""
    for way in WAYS:
        for attack in ATTACKS:
            if attack != NOBODY:
                for what in ("rho", "theta"):
                    calm = metrics[f"{NOBODY}, {way}: {what}"]
                    lost = calm - metrics[f"{attack}, {way}: {what}"]
                    yield f"{what} lost, {way}: {attack}", lost


TAKEN, NEXT_TO_NOTHING = 0.5, 0.05
"""More than half of the accuracy; a point in twenty, which is less than what rho's accuracies
deviate by over seeds."""


def words(m: Measured) -> str:
    """Return what the worst attack takes under each way."""
    worst = "; ".join(
        f"{way} {m.high(f'rho lost, {way}: *'):z.2f} and {m.high(f'theta lost, {way}: *'):z.2f}"
        for way in WAYS
        if way != "local"
    )
    return (
        f"The attack that takes most takes of rho's and of users' accuracy on their own points: "
        f"{worst}; of users alone under local {m.high('theta lost, local: *'):z.2f}. Replacement "
        f"leads users in {m.mean('model-replacement, classical: led, theta'):.0%} of triggered "
        f"points under classical and {m.mean('model-replacement, joint, l2: led, theta'):z.0%} "
        f"joint under l2."
    )


def _apart(metrics: Metrics, *, one: str, other: str) -> float:
    """Return how far two accuracies, ``way: whose``, are apart, over all attacks."""
    return max(
        abs(metrics[f"{attack}, {one}"] - metrics[f"{attack}, {other}"]) for attack in ATTACKS
    )


def _ditto_keeps(metrics: Metrics) -> float:
    """Return by how much less users lose under ditto than under classical to CGA."""
    return metrics["theta lost, classical: cga"] - metrics["theta lost, ditto: cga"]


def _moved(metrics: Metrics) -> float:
    """Return how far attacks move users' accuracy under local."""
    values = [metrics[f"{attack}, local: theta"] for attack in ATTACKS]
    return max(values) - min(values)


ONE_MODEL = Claim(
    partial(_apart, one="classical: theta", other="classical: rho"),
    exactly(0.0),
    "users' accuracy, off rho's, classical",
)
SAME_RHO = Claim(
    partial(_apart, one="ditto: rho", other="classical: rho"),
    exactly(0.0),
    "rho's accuracy, ditto off classical",
)
UNMOVED = Claim(_moved, exactly(0.0), "users' accuracy, by attack, local")


def _predictions() -> Iterator[Stated]:
    yield Stated(
        what="classical: who takes rho takes everybody",
        where="predicted: theta_n is rho",
        claim=ONE_MODEL,
        why="they are one model",
    )
    yield Stated(
        what="ditto: rho is lost as under classical",
        where="predicted: the same reports decide it",
        claim=SAME_RHO,
        why="theta_n has no influence on it",
    )
    yield Stated(
        what="local: no attack moves anybody",
        where="predicted: nobody shares",
        claim=UNMOVED,
        why="nothing is sent",
    )
    yield Stated(
        what="ditto: users lose less to CGA than under classical",
        where="predicted: their own points speak",
        claim=Claim(_ditto_keeps, at_least(NEXT_TO_NOTHING), "kept by ditto"),
        against=at_most(0.0),
        why="a point in twenty at least; the opposite: no less",
    )
    yield Stated(
        what="joint, l2: users lose next to nothing to any attack",
        where="predicted: a report is at most lam",
        claim=Claim("theta lost, joint, l2", at_most(NEXT_TO_NOTHING)),
        against=at_least(TAKEN),
        why="a point in twenty; the opposite: half of the accuracy",
    )


STUDY = Study(
    name="who-is-hurt",
    claim=(
        "Ours, predicted from what each way is: attacks that take rho take everybody who uses it, "
        "and users of their own models as far as those lean on it; under l2 users lose next to "
        "nothing, and alone nothing."
    ),
    words=words,
    measure=measure,
    draw=draw,
    seeds=(1, 2, 3),
    success=(Claim("rho lost, classical: cga", at_least(TAKEN)),),
    always=(ONE_MODEL, SAME_RHO, UNMOVED),
    has_runs=True,
    setting=(
        "Twelve users of digits by Dirichlet(0.3), two strategic, the plain sum, one Adam step a "
        "round, 60 rounds (30 in the quick form); accuracies on honest users' own test sets. Where "
        "nobody attacks all twelve are honest, and the same ten are measured."
    ),
    paper=tuple(_predictions()),
)
