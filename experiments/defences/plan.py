"""What is run: scenes, attacks, rules, and the cells that they make.

A *scene* is what couples rho and theta_n, how, and who holds what. In the crossed scenes every
attack meets every rule; in those at their sides one thing is changed at a time, and the attacks are
those that a crossed scene cannot do without. The attacks are those of the table in their strongest
form: omniscient where they have one, and CGA and ``rule-aware`` also as the threat model allows.

Sizes are such that all of it, three seeds, takes two cores less than three hours. That is why users
hold sixteen principal components of the digits (170 parameters in place of 650), a run has thirty
rounds (enough for CGA to bring rho within a hundredth of the way of its target under the sum), and
``rule-aware`` searches less (40 reports, two guesses) where it guesses at the honest reports.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from experiments.studies.variants import Keys
from pfl_flower.aggregation.table import AGGREGATIONS, most_tolerated
from pfl_flower.attacks.knowledge import Knowledge
from pfl_flower.attacks.table import ATTACKS as ATTACK_TABLE
from pfl_flower.support.errors import ConfigError

USERS, STRATEGIC = 12, 2
HONEST = USERS - STRATEGIC
ROUNDS = 30
BASE: Keys = {
    "dataset": "experiments.heterogeneity.components:components",
    "users": USERS,
    "nu": 0.01,
    "rounds": ROUNDS,
    "local-solver": "adam",
    "local-lr": 0.05,
    "evaluate-every": ROUNDS,
}
EVEN = "iid"
OPEN, BOUNDED, SMOOTH = "squared-l2", "l2", "smooth-l2"
REFERENCE = "sum"
"""The rule that without an attack all others are compared with."""
NOBODY = "none"
"""The attack that is none: the two users are honest."""


@dataclass(frozen=True)
class Scene:
    """One setting in which attacks meet rules.

    Attributes
    ----------
    regularizer, alpha : str
        What couples rho and theta_n; Dirichlet's alpha, or ``iid``.
    personalization : str
        How users personalise.
    crossed : bool
        Whether all attacks are tried.
    """

    regularizer: str
    alpha: str
    personalization: str = "joint"
    crossed: bool = False

    @property
    def name(self) -> str:
        """Its name, on the command line too.

        >>> Scene("l2", "0.3").name, Scene("squared-l2", "iid", "ditto").name
        ('l2/0.3', 'squared-l2/iid/ditto')
        """
        own = [] if self.personalization == "joint" else [self.personalization]
        return "/".join([self.regularizer, self.alpha, *own])

    def admits(self, rule: str) -> bool:
        """Return whether a rule has a part in it: where users learn alone there is the sum's name.

        >>> Scene("squared-l2", "0.3", "local").admits("median")
        False
        """
        return self.personalization != "local" or rule == REFERENCE

    @property
    def keys(self) -> Keys:
        """The keys of its runs."""
        own = {} if self.personalization == "joint" else {"personalization": self.personalization}
        return {"regularizer": self.regularizer, **_partition(self.alpha), **own}


def _partition(alpha: str) -> Keys:
    if alpha == EVEN:
        return {"partition": "similarity", "partition-similarity": 1.0}
    return {"partition": "dirichlet", "partition-alpha": float(alpha)}


@dataclass(frozen=True)
class Attack:
    """An attack in one of its forms.

    Attributes
    ----------
    name : str
        What the study calls it.
    keys : mapping
        Of its runs.
    knowledge : str
        What its attacker is given; empty where nobody attacks.
    asks : bool
        Whether it puts questions to the rule, which take the rule's time.
    """

    name: str
    keys: Keys
    knowledge: Knowledge | str = ""
    asks: bool = False

    @property
    def told(self) -> bool:
        """Whether its attacker is given the rule, or this round's honest reports besides."""
        return self.knowledge in ("rule", "omniscient")


@dataclass(frozen=True)
class Rule:
    """A rule, and the keys of its runs."""

    name: str
    keys: Keys = field(hash=False)


STRENGTHS = {"sign-flip": 5.0, "gaussian": 100.0, "little-is-enough": 1.5}
"""Of attacks whose own strength is not the one that is tried."""
PROPER = {
    "bulyan": "Bulyan",
    "cga": "CGA",
    "dnc": "DnC",
    "fang-krum": "Fang, Krum",
    "fang-trimmed-mean": "Fang, trimmed mean",
    "fltrust": "FLTrust",
    "gaussian": "Gaussian",
    "krum": "Krum",
    "mda": "MDA",
    "min-max": "min-max",
    "min-sum": "min-sum",
    "multi-krum": "Multi-Krum",
    "qrmed": "QrMed",
    "rule-aware": "rule-aware",
}
"""Members whose names in a table are more than words with hyphens."""
ELSEWHERE = {
    "data": "poisoned data hold what the model attack does, at more cost",
    "gradient-matching": "components are not in [0, 1], and at best it reports what CGA does",
    **{
        name: "users hold principal components here, and a trigger needs an image"
        for name, row in ATTACK_TABLE.items()
        if row.trigger
    },
}
"""Attacks of the table that are measured elsewhere, and why."""
GUESSING: Mapping[str, Keys] = {
    "cga": {"attack-knowledge": "own"},
    "rule-aware": {
        "attack-knowledge": "rule",
        "attack-options": json.dumps({"trials": 40, "guesses": 2}),
    },
}
"""Attacks that are also tried with less than the most that they can be given."""
SIDE = (NOBODY, "CGA", "mimic", "fitted inner product", "rule-aware")
"""The attacks of the scenes at the sides: the paper's, the strongest, and the most hidden one."""


def called(name: str) -> str:
    """Return what the study calls a member of a table.

    >>> called("trimmed-mean"), called("multi-krum")
    ('trimmed mean', 'Multi-Krum')
    """
    return PROPER.get(name, name.replace("-", " "))


def _attacks() -> Iterator[Attack]:
    """Yield nobody, then all attacks: those who guess, who take longest, at the end."""
    yield Attack(NOBODY, {"strategic-users": "none"})
    who = ",".join(map(str, range(HONEST, USERS)))
    last = []
    for member, row in ATTACK_TABLE.items():
        if member in ELSEWHERE:
            continue
        keys: Keys = {"strategic-users": who, "attack": member}
        if member in STRENGTHS:
            keys = {**keys, "attack-strength": STRENGTHS[member]}
        best = "omniscient" if "omniscient" in row.knows else row.knows[0]
        asks, name = "rule" in row.knows, called(member)
        if member in GUESSING:
            less = {**keys, **GUESSING[member]}
            knowledge = str(less["attack-knowledge"])
            if knowledge == "own":
                yield Attack(name, less, knowledge, asks)
                name = f"{name}, omniscient"
            else:
                last.append(Attack(f"{name}, on guesses", less, knowledge, asks))
        yield Attack(name, {**keys, "attack-knowledge": best}, best, asks)
    yield from last


ATTACKS: Mapping[str, Attack] = {attack.name: attack for attack in _attacks()}
TOLERATED = 2
"""f, also where nobody attacks."""
OPTIONS: Mapping[str, Keys] = {"geometric-median": {"aggregation-options": '{"steps": 100}'}}
"""A hundred steps at most in place of a thousand, which take five times as long."""


def rule_of(name: str, member: str) -> Rule:
    """Return a rule of the table, or one of one's own as ``package.module:name``, told f = 2."""
    own = AGGREGATIONS.row(member) is AGGREGATIONS.own
    tolerant = own or most_tolerated(member, USERS) is not None
    told: Keys = {"aggregation-tolerance": TOLERATED} if tolerant else {}
    return Rule(name, {"aggregation": member, **told, **OPTIONS.get(member, {})})


def _rules() -> Iterator[Rule]:
    for member in AGGREGATIONS:
        yield rule_of(called(member), member)
    plain = rule_of("", "trimmed-mean").keys
    yield Rule("mixing, trimmed mean", {**plain, "aggregation-mixing": True})


RULES: Mapping[str, Rule] = {rule.name: rule for rule in _rules()}
ALPHAS = ("1", "0.1")
"""How much users differ, besides iid and alpha = 0.3."""
PERSONALIZATIONS = ("classical", "ditto", "local")
"""Other ways to personalise than ``joint``. In ``local`` rho stays where it starts."""


def _scenes() -> Iterator[Scene]:
    for regularizer in (OPEN, BOUNDED):
        for alpha in (EVEN, "0.3"):
            yield Scene(regularizer, alpha, crossed=True)
    for alpha in (EVEN, "0.3"):
        yield Scene(SMOOTH, alpha)
    for alpha in ALPHAS:
        for regularizer in (OPEN, BOUNDED):
            yield Scene(regularizer, alpha)
    for personalization in PERSONALIZATIONS:
        yield Scene(OPEN, "0.3", personalization)


SCENES: Mapping[str, Scene] = {scene.name: scene for scene in _scenes()}
CROSSED, FIRST = "crossed", next(iter(SCENES))
"""What ``--scenes`` calls those in which all is tried, and the one that is always among them."""
QUICK_SCENES = tuple(name for name, scene in SCENES.items() if scene.crossed)[:3]
QUICK_ATTACKS = (NOBODY, "CGA", "fitted inner product", "rule-aware")
QUICK_RULES = ("sum", "median", "Multi-Krum")


class Cell(NamedTuple):
    """One run of the plan: the names of its scene, attack and rule."""

    scene: str
    attack: str
    rule: str

    def __str__(self) -> str:
        """Return the three names."""
        return ", ".join(self)


@dataclass(frozen=True)
class Plan:
    """Which cells are run.

    Attributes
    ----------
    cells : tuple of Cell
        In their order: crossed scenes first, in each of them nobody's attack first.
    rules : mapping
        The rules by name, one's own among them.
    """

    cells: tuple[Cell, ...]
    rules: Mapping[str, Rule]

    @classmethod
    def of(cls, *, quick: bool = False, scenes: str = "", own: Rule | None = None) -> Plan:
        """Return the plan of the study, or of one's own rule beside what is compared with.

        Parameters
        ----------
        quick : bool
            Few scenes, attacks and rules.
        scenes : str
            ``crossed``, or names of scenes between commas; empty for all.
        own : Rule, optional
            One's own, which meets all attacks of the crossed scenes; the others meet them in the
            quick form alone.

        Raises
        ------
        ConfigError
            If there is no such scene.
        """
        chosen = _chosen(scenes or (CROSSED if own else ""), quick)
        rules = {name: RULES[name] for name in (QUICK_RULES if quick else RULES)}
        if own is not None:
            rules = {**(rules if quick else {REFERENCE: RULES[REFERENCE]}), own.name: own}
        found = []
        for scene in chosen:
            attacks = QUICK_ATTACKS if quick else tuple(ATTACKS) if scene.crossed else SIDE
            for attack in attacks:
                for rule in filter(scene.admits, rules):
                    if own is None or quick or rule == own.name or attack == NOBODY:
                        found.append(Cell(scene.name, attack, rule))
        return cls(tuple(found), rules)

    @property
    def scenes(self) -> list[str]:
        """The names of its scenes, in their order."""
        return list(dict.fromkeys(cell.scene for cell in self.cells))

    def keys(self, cell: Cell, *, control: bool = False) -> Keys:
        """Return the keys of a cell's run; in the control nobody attacks."""
        attack = ATTACKS[NOBODY if control else cell.attack]
        return {**BASE, **SCENES[cell.scene].keys, **attack.keys, **self.rules[cell.rule].keys}


def _chosen(scenes: str, quick: bool) -> list[Scene]:
    if not scenes:
        return [SCENES[name] for name in (QUICK_SCENES if quick else SCENES)]
    if scenes == CROSSED:
        return [scene for scene in SCENES.values() if scene.crossed and _in(scene, quick)]
    for name in scenes.split(","):
        if name not in SCENES:
            raise ConfigError(f"--scenes {name}: expected {CROSSED}, or of {', '.join(SCENES)}")
    wanted = {FIRST, *scenes.split(",")}
    return [scene for name, scene in SCENES.items() if name in wanted]


def _in(scene: Scene, quick: bool) -> bool:
    return not quick or scene.name in QUICK_SCENES
