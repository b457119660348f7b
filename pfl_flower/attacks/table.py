"""The attacks by name: what a strategic user does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from pfl_flower.attacks.knowledge import EVERY, Knowledge
from pfl_flower.support.extensions import Extension, Refusal, Table
from pfl_flower.support.options import Options
from pfl_flower.support.run_settings import RunSettings

UNTARGETED = "pfl_flower.attacks.untargeted"
AMONG, FITTED = "pfl_flower.attacks.among_honest", "pfl_flower.attacks.fitted"


@dataclass(frozen=True, kw_only=True)
class AttackExtension(Extension):
    """An attack.

    Attributes
    ----------
    gives : {"reports", "data"}
        What the factory makes of an ``AttackSetup``: an ``Attack``, whose reports the user sends,
        or ``OtherData``, on which the user runs the honest code.
    rest : {"limit", "model", "data"} or None
        Where rho comes to rest under it: at the reachable limit, where theta_spade is held, or
        where the data are one user's; None where that is not known.
    told_by : str
        The key that says which kind of it a run has, if one does.
    trigger : bool
        Whether it is about a trigger on images, which the run then measures.
    knows : tuple of str
        What its attacker may be given, the attack's own first; without a word it has its own data.
    """

    gives: Literal["reports", "data"] = "reports"
    rest: Literal["limit", "model", "data"] | None = None
    told_by: str = ""
    trigger: bool = False
    knows: tuple[Knowledge, ...] = ("own",)


class RuleAwareOptions(Options):
    """Of the search."""

    trials: int = Field(160, ge=1, description="reports that a round's search tries")
    guesses: int = Field(
        4, ge=1, description="guesses at the honest reports, where they are not known"
    )


class BackdoorOptions(Options):
    """Of a trigger on images, and of what carries it."""

    size: int = Field(3, ge=1, description="pixels on a side of the patch")
    row: int = Field(-1, description="its first row; negative: its last, from the end")
    column: int = Field(-1, description="its first column, as row")
    value: float = Field(1.0, description="what its pixels become, in the features' units")
    label: int = Field(0, ge=0, description="class that it is to lead to")
    share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="of the points that teach it, stamped and relabelled",
    )


class MatchingOptions(Options):
    """Of the search for points."""

    points: int = Field(200, ge=1, description="points that are made in each round")
    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="of a point: it stands for so many"
    )
    sweeps: int = Field(3, ge=1, description="times that labels are found, features moved between")
    steps: int = Field(100, ge=1, description="steps towards labels in a sweep")
    pace: float = Field(
        0.1, gt=0, le=1, description="share of the way to the target that a round's wish goes"
    )


def knowledge_of(settings: RunSettings) -> Knowledge:
    """Return what a run's attacker is given: ``attack-knowledge``, or the attack's own."""
    return settings.attack_knowledge or ATTACKS.row(settings.attack).knows[0]


def admits_rest(settings: RunSettings) -> Refusal | None:
    """Refuse to look for an equilibrium that is not known."""
    if settings.equilibrium and settings.strategic():
        known = [name for name, row in ATTACKS.items() if row.rest is not None]
        return Refusal("equilibrium", f"false, unless attack = {', '.join(known)}")
    return None


def admits_inference(settings: RunSettings) -> Refusal | None:
    """Refuse to infer gradients that Adam's step does not reveal."""
    inferred = settings.estimator == "inferred" and bool(settings.strategic())
    if settings.attack_knowledge == "omniscient":
        told = bool(settings.strategic()) and not inferred
        return Refusal("estimator", "inferred, for attack-knowledge = omniscient") if told else None
    if inferred and settings.server_optimizer == "adam":
        return Refusal(
            "estimator",
            "oracle, or server-optimizer = sgd: Equation 5 cannot be inverted under Adam",
        )
    return None


def admits_classes(settings: RunSettings) -> Refusal | None:
    """Refuse what is known to be no classified images; a shape is told when the data are there."""
    if settings.synthetic or settings.embedded or settings.loss not in ("", "softmax"):
        return Refusal("attack", "for points that are no images")
    return None


def admits_replacement(settings: RunSettings) -> Refusal | None:
    """Refuse no images, and an estimate that is not made."""
    if settings.attack_knowledge == "rule" and settings.estimator == "oracle":
        return Refusal("estimator", "inferred, for attack-knowledge = rule")
    return admits_classes(settings) or admits_inference(settings)


def admits_exact_responses(settings: RunSettings) -> Refusal | None:
    """Refuse to work theta_spade out where there are no exact responses to work it out from."""
    if settings.attack_model == "exact" and not settings.linear:
        return Refusal("attack-model", "the folder of a CGA run, for a model that is not linear")
    return None


def admits_sums(settings: RunSettings) -> Refusal | None:
    """Refuse data that would not weigh what they are made to weigh."""
    if settings.reduction != "sum":
        return Refusal("reduction", "sum, for data poisoning")
    return admits_exact_responses(settings)


def admits_matching(settings: RunSettings) -> Refusal | None:
    """Refuse embeddings, which do not lie in [0, 1], and weights that depend on the others."""
    if settings.embedded:
        return Refusal("attack", "for embeddings, which are not in [0, 1]")
    if settings.reduction == "scaled-sum":
        return Refusal("reduction", "sum or mean, for points whose gradient is made")
    return admits_rest(settings) or admits_inference(settings)


ATTACKS: Table[AttackExtension] = Table(
    "attack",
    {
        "cga": AttackExtension(
            factory="pfl_flower.attacks.cga:counter_gradient",
            text="what cancels the others' gradients and lands rho on the target",
            source="the paper, Equations 5 and 6",
            rest="limit",
            told_by="estimator",
            reads=("estimator", "coalition"),
            admits=admits_inference,
            knows=("own", "omniscient"),
        ),
        "rule-aware": AttackExtension(
            factory="pfl_flower.attacks.rule_aware:rule_aware",
            text="what carries the public rule farthest towards CGA's wish, by search each round",
            source="after Fang et al. 2020",
            options=RuleAwareOptions,
            admits=admits_rest,
            knows=("rule", "omniscient"),
        ),
        "model": AttackExtension(
            factory="pfl_flower.attacks.model:model_attack",
            text="what a user reports whose model is theta_spade, whatever rho is",
            source="the paper, Section 2.2",
            rest="model",
            told_by="attack-model",
            reads=("attack-model",),
            admits=admits_exact_responses,
        ),
        "data": AttackExtension(
            factory="pfl_flower.attacks.other_data:fabricated",
            text="what the honest code reports on data fabricated by poisoning",
            source="the paper, Sections 4 and 5.3",
            gives="data",
            rest="data",
            told_by="poisoning",
            reads=("attack-model", "initialization"),
            admits=admits_sums,
        ),
        "gradient-matching": AttackExtension(
            factory="pfl_flower.attacks.gradient_matching:gradient_matching",
            text="CGA's report as the gradient of points in [0, 1], made anew each round",
            source="Bouaziz et al. 2024",
            options=MatchingOptions,
            reads=("estimator", "coalition"),
            admits=admits_matching,
            knows=("own", "omniscient"),
        ),
        "label-flip": AttackExtension(
            factory="pfl_flower.attacks.other_data:relabelled",
            text="what the honest code reports on the user's own draw with relabelled points",
            source="Tolpegin et al. 2020",
            gives="data",
            rest="data",
        ),
        "backdoor": AttackExtension(
            factory="pfl_flower.attacks.backdoor:poisoned_draw",
            text="what the honest code reports on its own draw, a share triggered and relabelled",
            source="Gu et al. 2017",
            options=BackdoorOptions,
            gives="data",
            rest="data",
            trigger=True,
            admits=admits_classes,
        ),
        "model-replacement": AttackExtension(
            factory="pfl_flower.attacks.backdoor:model_replacement",
            text="CGA, or rule-aware, towards a model that a trigger leads to one label",
            source="Bagdasaryan et al. 2020",
            options=BackdoorOptions,
            rest="limit",
            trigger=True,
            reads=("estimator", "coalition"),
            admits=admits_replacement,
            knows=("own", "rule", "omniscient"),
        ),
        "sign-flip": AttackExtension(
            factory=f"{UNTARGETED}:sign_flip",
            text="minus the user's own honest report, times attack-strength (1)",
            source="Li et al. 2019",
            reads=("attack-strength",),
            admits=admits_rest,
            knows=("own", "omniscient"),
        ),
        "gaussian": AttackExtension(
            factory=f"{UNTARGETED}:gaussian",
            text="noise, attack-strength (10) times as long as the user's own honest report",
            source="Blanchard et al. 2017",
            reads=("attack-strength",),
            admits=admits_rest,
        ),
        "little-is-enough": AttackExtension(
            factory=f"{UNTARGETED}:little_is_enough",
            text="mean - z deviation of surrogates' reports, z = attack-strength (theirs)",
            source="Baruch et al. 2019",
            reads=("attack-strength", "attack-draws"),
            admits=admits_rest,
            knows=("surrogates", "omniscient"),
        ),
        "inner-product": AttackExtension(
            factory=f"{UNTARGETED}:inner_product",
            text="minus their mean, times attack-strength (twice what turns the sum around)",
            source="Xie et al. 2020",
            reads=("attack-strength", "attack-draws"),
            admits=admits_rest,
            knows=("surrogates", "omniscient"),
        ),
        "min-max": AttackExtension(
            factory=f"{UNTARGETED}:min_max",
            text="mean - gamma deviation, the largest gamma that is no outlier among them",
            source="Shejwalkar and Houmansadr 2021",
            reads=("attack-draws",),
            admits=admits_rest,
            knows=("surrogates", "omniscient"),
        ),
        "min-sum": AttackExtension(
            factory=f"{AMONG}:min_sum",
            text="mean - gamma deviation, as far from all together as the farthest of them",
            source="Shejwalkar and Houmansadr 2021",
            reads=("attack-draws",),
            admits=admits_rest,
            knows=("surrogates", "omniscient"),
        ),
        "mimic": AttackExtension(
            factory=f"{AMONG}:mimic",
            text="the honest report that lies farthest along what sets honest users apart",
            source="Karimireddy et al. 2022",
            reads=("attack-draws",),
            admits=admits_rest,
            knows=("surrogates", "omniscient"),
        ),
        "fang-trimmed-mean": AttackExtension(
            factory=f"{AMONG}:fang_trimmed_mean",
            text="in each coordinate a number beyond all of theirs, on the other side",
            source="Fang et al. 2020",
            reads=("attack-draws",),
            admits=admits_rest,
            knows=("surrogates", "omniscient"),
        ),
        "fang-krum": AttackExtension(
            factory=f"{FITTED}:fang_krum",
            text="minus the signs of their mean, as long as Krum picks",
            source="Fang et al. 2020",
            admits=admits_rest,
            knows=("rule", "omniscient"),
        ),
        "fitted-little-is-enough": AttackExtension(
            factory=f"{FITTED}:fitted_little_is_enough",
            text="mean + z deviation, the z of either sign that leads the rule farthest astray",
            source="Baruch et al. 2019, Shejwalkar and Houmansadr 2021",
            admits=admits_rest,
            knows=("rule", "omniscient"),
        ),
        "fitted-inner-product": AttackExtension(
            factory=f"{FITTED}:fitted_inner_product",
            text="z times their mean, the z of either sign that leads the rule farthest astray",
            source="Xie et al. 2020, Shejwalkar and Houmansadr 2021",
            admits=admits_rest,
            knows=("rule", "omniscient"),
        ),
    },
    own=AttackExtension(
        text="a class as package.module:Name",
        reads=("attack-strength", "attack-draws", "attack-model", "estimator", "coalition"),
        admits=admits_rest,
        knows=("surrogates", *(level for level in EVERY if level != "surrogates")),
    ),
    passed=("setup",),
)
"""From an ``AttackSetup`` to what the user reports, or to the data it is honest on."""
